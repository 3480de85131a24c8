"""What happens when a run is signalled, when a process of it dies, and when one stands still."""
