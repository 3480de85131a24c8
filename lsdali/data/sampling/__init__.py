"""Pure functions of (seed, epoch, sample): the order of an epoch, crops, augmentations, mixed pairs."""
