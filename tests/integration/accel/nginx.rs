//! Debian's nginx: what people have today, and the reference for `X-Accel-Redirect`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::front::without_override;
use crate::support::eventually;

/// A port that nobody else is given while this lives: bound, and never listened on.
pub(super) struct Reserved {
    pub(super) addr: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    pub(super) fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        // Both, because the server that will listen there sets one or the other.
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bind");
        let addr = socket.local_addr().expect("bound").as_socket().expect("an IPv4 address");
        Self { addr, _socket: socket }
    }
}

/// A server of somebody else's, which ends with this value.
pub(super) struct Peer {
    name: &'static str,
    home: TempDir,
    child: Child,
    port: Reserved,
}

impl Peer {
    /// Starts `name` with the configuration that `write` makes of its directory and address, and waits until it accepts.
    pub(super) fn start(
        name: &'static str,
        arguments: &[&str],
        write: impl FnOnce(&TempDir, SocketAddr) -> String,
    ) -> Self {
        let home = TempDir::with_prefix(name).expect("a temporary directory");
        let port = Reserved::new();
        let config = home.path().join("config");
        fs::write(&config, write(&home, port.addr)).expect("our own directory");
        let log = fs::File::create(home.path().join("log")).expect("our own directory");
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = match without_override().split_first() {
            Some((wrapper, rest)) => {
                let mut command = Command::new(wrapper);
                command.args(rest).arg(name);
                command
            }
            None => Command::new(name),
        };
        let mut child = command
            .env("PATH", path)
            .args(arguments)
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} (Debian's package of that name) does not start: {error}"));
        eventually(name, || {
            if let Some(status) = child.try_wait().expect("our own child") {
                let log = fs::read_to_string(home.path().join("log")).unwrap_or_default();
                panic!("{name} ended with {status}:\n{log}");
            }
            TcpStream::connect(port.addr).is_ok().then_some(())
        });
        Self { name, home, child, port }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.port.addr
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // nginx's master ends its worker at TERM; a kill would leave that behind.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        if crate::support::tools::wait(&mut self.child, crate::support::PATIENCE).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            eprintln!("--- what {} said:\n{log}---", self.name);
        }
    }
}

/// nginx that passes everything to `backend` but for `locations`, which are inserted as they are.
pub(super) fn nginx(backend: SocketAddr, locations: &str) -> Peer {
    Peer::start("nginx", &["-c"], |home, addr| {
        let home = home.path().display();
        // Started by root, workers would give up the right to read the files.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        format!(
            "{user}
daemon off;
worker_processes 1;
pid {home}/pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log off;
    sendfile on;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    upstream application {{ server {backend}; keepalive 8; }}
    server {{
        listen {addr} reuseport;
        location / {{
            proxy_pass http://application;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $http_host;
        }}
        {locations}
    }}
}}
"
        )
    })
}
