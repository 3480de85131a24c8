"""Figures of trained networks, for papers (`lsdali figure NAME RUN ...`)."""
