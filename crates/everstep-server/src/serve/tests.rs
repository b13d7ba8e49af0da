//! A whole server over an in-memory store, talked to over a socket.

mod api;
mod drain;
mod hostile;
mod http;
mod support;
mod worker;
