//! Real clients push real images, and pull them back the same; pushed content beside what upstream has; registries of
//! one process that share nothing.

mod cache;
mod clients;
mod hosts;
