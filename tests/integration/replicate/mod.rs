//! `spliceway replicate` between real registries: docker-registry and Spliceway, each as source and as target, and
//! straight into a directory; what goes wrong on the way is done by a relay between them.

mod again;
mod command;
mod content;
mod contents;
mod corrupt;
mod delete;
mod faults;
mod file;
mod finders;
mod kills;
mod lists;
mod local;
mod output;
mod referrers;
mod select;
mod sites;
