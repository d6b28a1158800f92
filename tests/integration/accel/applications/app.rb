# An application as Rack's users write it: `ruby app.rb ROOT [VARIATION]`. It prints its port.
#
# VARIATION is what Rack::Sendfile is told: "X-Accel-Redirect" (where a file is in the front comes in the request's
# X-Accel-Mapping) or "X-Sendfile". Without one the application sends the bytes itself.
require "rack"
require "rack/handler/webrick"

root, variation = ARGV
app = Rack::Builder.new do
  use Rack::Sendfile, variation
  map("/files") { run Rack::Files.new(root) }
  map("/download") do
    run(lambda do |env|
      name = Rack::Utils.unescape_path(env["PATH_INFO"].delete_prefix("/")).force_encoding("UTF-8")
      path = File.join(root, name)
      next [404, { "Content-Type" => "text/plain" }, ["no such file\n"]] unless File.file?(path)

      encoded = Rack::Utils.escape_path(File.basename(name))
      headers = {
        "Content-Type" => "application/x-download",
        "Content-Disposition" => "attachment; filename*=UTF-8''#{encoded}",
        "Set-Cookie" => "downloaded=1",
        "Cache-Control" => "private",
      }
      [200, headers, File.open(path, "rb")]
    end)
  end
  run ->(_env) { [200, { "Content-Type" => "text/html; charset=utf-8" }, ["<p>Gr\u00fc\u00dfe</p>\n"]] }
end.to_app
options = { Host: "127.0.0.1", Port: 0, AccessLog: [], Logger: WEBrick::Log.new($stderr, WEBrick::Log::WARN) }
Rack::Handler::WEBrick.run(app, **options) do |server|
  puts server.listeners[0].addr[1]
  $stdout.flush
end
