"""The commands that `onestep` knows."""
