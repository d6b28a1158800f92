//! What the allocator does with memory that was freed.

/// A block larger than this is given back to the kernel when it is freed, in bytes.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 4 << 20;
/// Free memory at the end of an arena is kept up to this, in bytes.
#[cfg(target_env = "gnu")]
const KEPT_MAX: libc::c_int = 16 << 20;

/// Has the allocator keep what a fill's buffers took for the next ones. To be called once, before threads are started.
///
/// What upstream sends comes in buffers of some hundred kilobytes, which one thread allocates and another one frees.
/// glibc gives blocks of that size back to the kernel at once, and every page of the next one is faulted in and zeroed
/// again: 16 readers of a fill of 512 MiB, 2.55 s until the last had it and 2.2 s of CPU; with this 1.77 and 1.66 s (varnish
/// in the same run 1.75 and 1.58; the origin was an nginx with `tcp_nopush on`). Bounded by what is in buffers at once, 32 MiB over all fills. Other allocators are left
/// as they are.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes two numbers; a value that it does not like it refuses.
        let set = unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_MAX) == 1
        };
        if !set {
            tracing::debug!("the allocator's thresholds cannot be set");
        }
    }
}
