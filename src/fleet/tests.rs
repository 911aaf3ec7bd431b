//! Sessions against a host that this process plays, over real pipes.
