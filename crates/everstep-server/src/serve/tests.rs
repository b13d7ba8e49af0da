//! A whole server over an in-memory store, talked to over a socket.

mod api;
mod budget;
mod drain;
mod flood;
mod fuzz;
mod hostile;
mod http;
mod many;
mod patience;
mod raw;
mod slow;
mod support;
mod worker;
