-- Prints what wrk counted as one line of JSON, because its own summary rounds. Nothing here runs while it measures.
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '\n{"duration_us": %d, "requests": %d, "bytes": %d, "p50_us": %d, "p99_us": %d, ' ..
        '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
        summary.duration, summary.requests, summary.bytes, latency:percentile(50), latency:percentile(99),
        errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
