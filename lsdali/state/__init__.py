"""What a run saves: named parts, each owned by the object that knows it."""
