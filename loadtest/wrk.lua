-- wrk's script. Prints what wrk counted as one line of JSON, because its own summary rounds.
--
-- Without an argument nothing here runs while wrk measures: it sends the same bytes again and again. The argument names
-- a file of requests, which are then sent in its order, over and over: a line each of method, target and, where there
-- is one, a header's name and value, with single spaces between them.

local function read_requests(path)
    local requests = {}
    for line in io.lines(path) do
        local method, target, name, value = line:match('^(%S+) (%S+) ?(%S*) ?(.*)$')
        local headers = {}
        if name ~= '' then
            headers[name] = value
        end
        requests[#requests + 1] = wrk.format(method, target, headers)
    end
    return requests
end

function init(args)
    if not args[1] then
        return
    end
    local requests = read_requests(args[1])
    local next_one = 0
    request = function()
        next_one = next_one % #requests + 1
        return requests[next_one]
    end
end

function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '\n{"duration_us": %d, "requests": %d, "bytes": %d, "p50_us": %d, "p99_us": %d, "p999_us": %d, ' ..
        '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
        summary.duration, summary.requests, summary.bytes, latency:percentile(50), latency:percentile(99),
        latency:percentile(99.9), errors.connect, errors.read, errors.write, errors.timeout, errors.status))
end
