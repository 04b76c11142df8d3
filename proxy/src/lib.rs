//! The sidecar proxy. Read [`outbound`] first: it is the whole life of a request on one screen.
//!
//! Modules stand in the order a connection meets them; after them, what lives as long as the process.

// Bytes from outside reach nearly everything here: nothing may panic because of them. Where an index is right by construction, the place
// says why (`expect`).
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::get_unwrap,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented
    )
)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests bring their own sockets and clocks"))]

// The two journeys: every branch of the data path.
pub mod inbound; //    mesh -> application
pub mod outbound; //   application -> mesh

pub mod accept; //     1 a connection arrives
pub mod authorize; //  5 may it
pub mod balance; //    8 which one
pub mod detect; //     2 what does it speak
pub mod http; //       4 requests in, responses out
pub mod relay; //        ... or just bytes
pub mod resilience; // 7 how hard to try
pub mod route; //      6 where to
pub mod tls; //        3 who is it
pub mod upstream; //   9 reaching it

// Residents.
pub mod admin; //      what an operator may ask and do
pub mod arguments; //  the command line of a sidecar
pub mod config; //     the newest picture of the mesh, and how it gets here
pub mod drain; //      how to stop without losing anything
pub mod failure; //    what went wrong, whose fault it was, what had been sent
pub mod host; //       sockets, clock, randomness and tasks: the one seam to the machine
pub mod identity; //   our certificate, and who may sign it
pub mod intercept; //  redirect rules and names for applications that do not know about us
pub mod residents; //  what lives as long as the process, as the journeys see it
pub mod settings; //   what the process was started with
pub mod sidecar; //    everything put together
pub mod telemetry; //  metrics, access log, process log
pub mod workers; //    one thread, one runtime, one listener each
