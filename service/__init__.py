"""Everything that touches the world: HTTP, the disk, the command line. The learner itself is in `core`."""
