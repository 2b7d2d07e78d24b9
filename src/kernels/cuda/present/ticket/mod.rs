//! Tickets on a GPU: device layout, apply and revert, and the overlay.

pub mod apply;
pub mod layout;
pub mod overlay;
