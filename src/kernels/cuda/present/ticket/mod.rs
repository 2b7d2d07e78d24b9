//! Tickets on a GPU: their layout, apply and revert, and the overlay.

pub mod apply;
pub mod layout;
pub mod overlay;
