//! Handshakes between real rustls ends in memory, and certificates that nobody should survive parsing.

mod crls;
mod explain;
mod handshakes;
mod hello;
mod hostile;
mod profiles;
mod rules;
