"""An application as Flask's users write it: `python3 app.py ROOT VARIATION`. It prints its port.

VARIATION is "X-Sendfile", which Flask speaks itself; "X-Accel-Redirect", for which its users translate that into an
internal location; or "none", where the application sends the bytes itself.
"""

import sys
from urllib.parse import quote

from flask import Flask, send_from_directory
from werkzeug.serving import WSGIRequestHandler, make_server

root, variation = sys.argv[1:]
app = Flask(__name__)
app.config["USE_X_SENDFILE"] = variation != "none"


@app.get("/")
def index():
    return "<p>Grüße</p>\n"


@app.get("/files/<path:name>")
def files(name):
    return send_from_directory(root, name)


@app.get("/download/<path:name>")
def download(name):
    return send_from_directory(root, name, as_attachment=True, download_name="Grüße an alle.txt")


@app.after_request
def redirect(response):
    path = response.headers.get("X-Sendfile")
    if path and variation == "X-Accel-Redirect":
        del response.headers["X-Sendfile"]
        response.headers["X-Accel-Redirect"] = quote("/protected" + path.removeprefix(root))
    return response


WSGIRequestHandler.protocol_version = "HTTP/1.1"
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
