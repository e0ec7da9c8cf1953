//! Two applications that talk through both ends of a tunnel, over real sockets and real TLS.

mod bytes;
mod half_close;
mod resets;
mod world;
