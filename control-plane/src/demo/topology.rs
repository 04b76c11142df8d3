//! What runs where: the workloads of the shop, their addresses, and the command line of every process. Pure, apart
//! from looking for free ports.
//!
//! ```text
//!  demo, wrk, curl ─► visitors ─► frontend ─► reviews v1
//!                                        └──► reviews v2 ─► ratings
//! ```
//! Each name is a workload with a sidecar; every arrow between two of them is mutual TLS. `visitors` has no
//! application: its sidecar is where traffic enters the mesh. One [`Plan`] serves both modes; they differ in the
//! addresses and in how a process is started ([`Mode`]).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
};

use super::{http_client::Target, network::Network, processes::Launch};

/// Namespace of everything in the shop.
pub const NAMESPACE: &str = "shop";
/// Port of every service of the shop.
pub const SERVICE_PORT: u16 = 9080;
/// Sidecar whose breaker and retries the story is about: it alone calls ratings.
pub const CALLER_OF_RATINGS: &str = "reviews-v2";
/// User id of sidecars in transparent mode; the redirect rules let it pass. Istio's choice, too.
pub const SIDECAR_USER: u32 = 1337;

/// Name of the control plane's process. It stops last: sidecars tell it that they go.
pub const CONTROL_PLANE: &str = "control-plane";

/// One running instance, as users would describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    pub name: &'static str,
    /// Also the service account and the label `app`.
    pub app: &'static str,
    pub version: &'static str,
    /// `visitors` has none.
    pub has_application: bool,
    /// The service it calls.
    pub calls: Option<&'static str>,
}

/// The shop.
pub const WORKLOADS: [Workload; 5] = [
    Workload { name: "visitors-v1", app: "visitors", version: "v1", has_application: false, calls: Some("frontend") },
    Workload { name: "frontend-v1", app: "frontend", version: "v1", has_application: true, calls: Some("reviews") },
    Workload { name: "reviews-v1", app: "reviews", version: "v1", has_application: true, calls: None },
    Workload { name: "reviews-v2", app: "reviews", version: "v2", has_application: true, calls: Some("ratings") },
    Workload { name: "ratings-v1", app: "ratings", version: "v1", has_application: true, calls: None },
];

/// How processes are kept apart.
#[derive(Clone, Debug)]
pub enum Mode {
    /// All on loopback; sidecars are told which ports to listen on.
    Explicit,
    /// A network namespace for each workload, with redirect rules.
    Transparent(Network),
}

/// A workload with its addresses.
#[derive(Clone, Debug)]
pub struct Placed {
    pub workload: Workload,
    /// Where the application listens.
    pub app: SocketAddr,
    /// Where peers reach it: what a client without a mesh identity would dial.
    pub inbound: SocketAddr,
    /// Where its sidecar takes calls to the service it calls (explicit mode, and `visitors` in both).
    pub local: SocketAddr,
    pub admin: SocketAddr,
}

/// Everything's place.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub discovery: SocketAddr,
    pub control_admin: SocketAddr,
    pub monitoring: SocketAddr,
    pub placed: Vec<Placed>,
    /// An HTTP forward proxy into the mesh: the outbound port of `visitors`.
    pub forward_proxy: SocketAddr,
}

impl Plan {
    /// Everything on free loopback ports; `front` is where the front end shall be reached, if not on a free port.
    pub fn explicit(front: Option<SocketAddr>) -> io::Result<Self> {
        let mut ports = FreePorts::default();
        let placed = WORKLOADS
            .iter()
            .map(|workload| {
                let local = if workload.has_application { None } else { front };
                Ok(Placed {
                    workload: *workload,
                    app: ports.next()?,
                    inbound: ports.next()?,
                    local: local.map_or_else(|| ports.next(), Ok)?,
                    admin: ports.next()?,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            mode: Mode::Explicit,
            discovery: ports.next()?,
            control_admin: ports.next()?,
            monitoring: ports.next()?,
            placed,
            forward_proxy: ports.next()?,
        })
    }

    /// Workloads in the namespaces of `network`, with the ports that a cluster would use.
    pub fn transparent(network: Network) -> io::Result<Self> {
        let mut ports = FreePorts::default();
        let at = |index: usize, port: u16| SocketAddr::new(IpAddr::V4(network.address(index)), port);
        let placed = WORKLOADS
            .iter()
            .enumerate()
            .map(|(index, workload)| Placed {
                workload: *workload,
                app: SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVICE_PORT)),
                inbound: at(index, SERVICE_PORT),
                local: at(index, VISITORS_PORT),
                admin: at(index, ADMIN_PORT),
            })
            .collect();
        let discovery = SocketAddr::new(IpAddr::V4(network.gateway()), ports.next()?.port());
        Ok(Self {
            discovery,
            control_admin: ports.next()?,
            monitoring: ports.next()?,
            placed,
            forward_proxy: at(0, FORWARD_PORT),
            mode: Mode::Transparent(network),
        })
    }

    /// Where the front end can be reached through the mesh.
    pub fn front(&self) -> Target {
        self.visitors().local.into()
    }

    fn visitors(&self) -> &Placed {
        // WORKLOADS begins with it.
        &self.placed[0]
    }

    /// The place of a workload; `name` is one of [`WORKLOADS`].
    pub fn place(&self, name: &str) -> Option<&Placed> {
        self.placed.iter().find(|placed| placed.workload.name == name)
    }

    /// `outrigger serve`.
    pub fn serve(&self, program: &Path, data: &Path) -> Launch {
        let mut args = vec!["serve".to_owned(), "--data-dir".to_owned(), data.display().to_string()];
        for (flag, address) in
            [("--discovery", self.discovery), ("--admin", self.control_admin), ("--monitoring", self.monitoring)]
        {
            args.extend([flag.to_owned(), address.to_string()]);
        }
        Launch::new(CONTROL_PLANE, program, args)
    }

    /// The application of a workload, by the name it is started and killed under.
    pub fn application(&self, program: &Path, placed: &Placed) -> Launch {
        let workload = placed.workload;
        let mut args: Vec<String> = ["demo", "shop-service", "--control-stdin", "--name", workload.app, "--version"]
            .map(str::to_owned)
            .to_vec();
        args.extend([workload.version.to_owned(), "--listen".to_owned(), placed.app.to_string()]);
        if let Some(service) = workload.calls {
            // An application in transparent mode knows nothing but the service's name.
            let target = match &self.mode {
                Mode::Explicit => format!("http://{}", placed.local),
                Mode::Transparent(_) => format!("http://{service}:{SERVICE_PORT}"),
            };
            args.extend(["--call".to_owned(), target]);
        }
        let launch = Launch::new(application_name(workload.name), program, args).with_orders();
        match &self.mode {
            Mode::Explicit => launch,
            Mode::Transparent(network) => launch.through(network.enter(workload.name)),
        }
    }

    /// `outrigger proxy` for a workload.
    pub fn sidecar(&self, program: &Path, placed: &Placed, token: &Path, state: &Path) -> Launch {
        let Workload { name, app, version, has_application, calls } = placed.workload;
        let mut args: Vec<String> = vec!["proxy".to_owned()];
        let mut flag = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        flag("--control-plane", self.discovery.to_string());
        flag("--token-file", token.display().to_string());
        flag("--namespace", NAMESPACE.to_owned());
        flag("--workload", name.to_owned());
        flag("--service-account", app.to_owned());
        flag("--label", format!("app={app}"));
        flag("--label", format!("version={version}"));
        flag("--admin", placed.admin.to_string());
        flag("--state-dir", state.display().to_string());
        if !has_application {
            flag("--local", format!("{}=frontend.{NAMESPACE}:{SERVICE_PORT}", placed.local));
            flag("--outbound", self.forward_proxy.to_string());
        }
        match &self.mode {
            Mode::Explicit => {
                if has_application {
                    flag("--inbound", format!("{}={},port={SERVICE_PORT},name=http", placed.inbound, placed.app));
                    if let Some(service) = calls {
                        flag("--local", format!("{}={service}.{NAMESPACE}:{SERVICE_PORT}", placed.local));
                    }
                }
            }
            Mode::Transparent(_) => {
                flag("--address", placed.inbound.ip().to_string());
                if has_application {
                    flag("--port", format!("{SERVICE_PORT}=http"));
                }
                flag("--dns", SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT)).to_string());
                args.push("--transparent".to_owned());
            }
        }
        let launch = Launch::new(name, program, args);
        match &self.mode {
            Mode::Explicit => launch,
            Mode::Transparent(network) => {
                let user = SIDECAR_USER.to_string();
                let mut runner = network.enter(name);
                let change_user =
                    ["setpriv", "--reuid", user.as_str(), "--regid", user.as_str(), "--clear-groups", "--"];
                runner.extend(change_user.map(str::to_owned));
                launch.through(runner)
            }
        }
    }

    /// `outrigger intercept apply` in a workload's namespace.
    pub fn intercept(&self, program: &Path, placed: &Placed, network: &Network) -> Launch {
        let mut args: Vec<String> = ["intercept", "apply", "--dns", "--proxy-uid"].map(str::to_owned).to_vec();
        args.push(SIDECAR_USER.to_string());
        if !placed.workload.has_application {
            // Where the world outside comes in; the rules leave the operator's port alone by themselves.
            args.extend(["--exclude-inbound-ports".to_owned(), format!("{VISITORS_PORT},{FORWARD_PORT}")]);
        }
        Launch::new(format!("{}-intercept", placed.workload.name), program, args)
            .through(network.enter(placed.workload.name))
            .brief()
    }
}

/// Where `visitors` takes requests for the front end, in transparent mode.
const VISITORS_PORT: u16 = 8080;
/// Its forward proxy.
const FORWARD_PORT: u16 = 15080;
/// Operator's port of every sidecar, in transparent mode.
const ADMIN_PORT: u16 = 15000;
/// Names for applications, in transparent mode; the redirect rules lead port 53 there.
const DNS_PORT: u16 = 15053;

/// Name of a workload's application process.
pub fn application_name(workload: &str) -> String {
    format!("{workload}-app")
}

/// Free loopback ports, each given out once.
///
/// From below the range that the kernel gives to outgoing connections (ip_local_port_range, 32768 and up), so that no
/// connection of ours can take a port between looking and listening, or while a service is down.
#[derive(Default)]
struct FreePorts {
    // Held until all are chosen, so that none is found twice.
    held: Vec<TcpListener>,
}

impl FreePorts {
    fn next(&mut self) -> io::Result<SocketAddr> {
        for _ in 0..1000 {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..32_000)));
            if let Ok(listener) = TcpListener::bind(address) {
                self.held.push(listener);
                return Ok(address);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port between 20000 and 32000 on 127.0.0.1"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn words(launch: &Launch) -> String {
        let args: Vec<_> = launch.args.iter().map(|word| word.to_string_lossy()).collect();
        format!("{} {}", launch.program.to_string_lossy(), args.join(" "))
    }

    #[test]
    fn no_address_is_given_out_twice() {
        // Two processes on one port: one of them would not start.
        let plan = Plan::explicit(None).unwrap();
        let mut all = vec![plan.discovery, plan.control_admin, plan.monitoring, plan.forward_proxy];
        for placed in &plan.placed {
            all.extend([placed.app, placed.inbound, placed.local, placed.admin]);
        }
        let different: HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn the_front_end_is_where_the_user_wants_it() {
        // `--listen` is for load generators that were given a fixed address.
        let wanted: SocketAddr = "127.0.0.1:18080".parse().unwrap();
        let plan = Plan::explicit(Some(wanted)).unwrap();
        assert_eq!(plan.front().to_string(), "http://127.0.0.1:18080");
        let sidecar = plan.sidecar(Path::new("o"), plan.visitors(), Path::new("t"), Path::new("s"));
        assert!(words(&sidecar).contains("--local 127.0.0.1:18080=frontend.shop:9080"));
    }

    #[test]
    fn applications_reach_each_other_only_through_their_sidecars() {
        // A call that bypassed the sidecar would be plaintext, and every promise about it void.
        let plan = Plan::explicit(None).unwrap();
        let frontend = plan.place("frontend-v1").unwrap();
        let app = words(&plan.application(Path::new("o"), frontend));
        let sidecar = words(&plan.sidecar(Path::new("o"), frontend, Path::new("t"), Path::new("s")));
        assert!(app.ends_with(&format!("--call http://{}", frontend.local)), "{app}");
        assert!(sidecar.contains(&format!("--local {}=reviews.shop:9080", frontend.local)), "{sidecar}");
        assert!(
            sidecar.contains(&format!("--inbound {}={},port=9080,name=http", frontend.inbound, frontend.app)),
            "{sidecar}"
        );
    }

    #[test]
    fn transparent_workloads_live_in_namespaces_and_know_only_names() {
        // An application that was told an address of the mesh would prove nothing about interception.
        let plan = Plan::transparent(Network::planned("ogtest", [10, 210, 7])).unwrap();
        let reviews = plan.place("reviews-v2").unwrap();
        let app = words(&plan.application(Path::new("o"), reviews));
        assert!(app.starts_with("ip netns exec ogtest-reviews-v2 o demo shop-service"), "{app}");
        assert!(app.ends_with("--listen 0.0.0.0:9080 --call http://ratings:9080"), "{app}");
        let sidecar = words(&plan.sidecar(Path::new("o"), reviews, Path::new("t"), Path::new("s")));
        assert!(sidecar.contains("exec ogtest-reviews-v2 setpriv --reuid 1337"), "{sidecar}");
        assert!(!sidecar.contains("--local") && !sidecar.contains("--inbound"), "{sidecar}");
        let Mode::Transparent(network) = &plan.mode else { panic!("not transparent") };
        let rules = words(&plan.intercept(Path::new("o"), plan.visitors(), network));
        assert!(rules.contains("exec ogtest-visitors-v1 o intercept apply --dns --proxy-uid 1337"), "{rules}");
        assert!(rules.ends_with("--exclude-inbound-ports 8080,15080"), "{rules}");
    }
}
