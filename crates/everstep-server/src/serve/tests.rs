//! A whole server over an in-memory store, talked to over a socket.

mod support;
