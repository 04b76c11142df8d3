//! The binary `outrigger` from outside: what it answers to a wrong command line, file, token or certificate, and what its
//! help lists.
//!
//! Nothing here reaches a control plane. Every case names the exact exit code and the exact first line of the message.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

/// A run in `folder` with nothing of the tester's environment.
fn outrigger(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command
        .args(words)
        .current_dir(folder)
        .env_clear()
        .env("XDG_STATE_HOME", folder.join("state"))
        .stdin(Stdio::null());
    command
}

fn run(folder: &Path, words: &[&str]) -> Output {
    outrigger(folder, words).output().unwrap()
}

fn first_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().next().unwrap_or_default().to_owned()
}

/// Runs each case and reports all that differ at once.
fn check(folder: &Path, exit: i32, cases: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (line, message) in cases {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = run(folder, &words);
        let (got_exit, got) = (output.status.code(), first_line(&output));
        let expected = format!("error: {message}");
        if got_exit != Some(exit) || got != expected {
            wrong.push(format!("outrigger {line}\n  expected {exit}: {expected}\n  got {got_exit:?}: {got}"));
        }
        if !output.stdout.is_empty() {
            wrong
                .push(format!("outrigger {line}\n  a failure wrote data: {}", String::from_utf8_lossy(&output.stdout)));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

const MESH: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: shop}\nspec:\n  ports: [{name: http, port: 80}]\n";

#[test]
fn wrong_commands_and_flags_are_answered_with_64_and_the_nearest_right_word() {
    // A person who mistypes must learn in one line what to type; a script must see "usage" and not "failed".
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
    let not_a_duration = "is not a duration (hint: a number and a unit, for example 250ms, 10s or 1h)";
    let timeout = format!("`--timeout <DURATION>`: `5` {not_a_duration}");
    let no_name = "is not a name: lower case letters, digits, '-' and '.', at most 253";
    let namespace = format!("`--namespace <NAMESPACE>`: \"Shop\" {no_name} (hint: \"shop\" would do)");
    let service = format!("\"Reviews\" {no_name} (hint: \"reviews\" would do)");
    check(
        folder.path(),
        64,
        &[
            ("aply -f mesh.yaml", "unknown command `aply` (did you mean `apply`?)"),
            ("frobnicate", "unknown command `frobnicate` (see `outrigger --help`)"),
            ("--frobnicate", "unknown flag `--frobnicate` (see `outrigger --help`)"),
            ("apply", "missing --filename <FILE> (see `outrigger apply --help`)"),
            ("apply -f", "`--filename <FILE>` needs a value"),
            ("apply --filname mesh.yaml", "unknown flag `--filname` (did you mean `--filename`?)"),
            ("apply -f mesh.yaml --wiat", "unknown flag `--wiat` (did you mean `--wait`?)"),
            ("apply -f mesh.yaml --dry-run --wait", "`--dry-run` cannot be used together with `--wait`"),
            ("apply -f mesh.yaml --timeout 5", &timeout),
            (
                "apply -f mesh.yaml --expect-revision 0",
                "`--expect-revision <N>`: \"0\" is not a revision (hint: `outrigger history` lists them)",
            ),
            ("apply -f mesh.yaml -n Shop", &namespace),
            ("apply -f mesh.yaml -o table", "`--output <OUTPUT>`: `table` is not allowed (one of text, json, yaml)"),
            ("get -o xml", "`--output <OUTPUT>`: `xml` is not allowed (one of table, wide, json, yaml)"),
            ("get servce", "unknown kind \"servce\" (did you mean \"service\"?)"),
            ("get httprouts", "unknown kind \"httprouts\" (did you mean \"httproute\"?)"),
            ("get -A -n shop", "`--all-namespaces` cannot be used together with `--namespace <NAMESPACE>`"),
            (
                "get -A service reviews",
                "an object is named, so its namespace must be too (hint: -n NAMESPACE instead of -A)",
            ),
            (
                "get service/reviews ratings",
                "\"ratings\" stands beside KIND/NAME (hint: write every object as KIND/NAME)",
            ),
            ("get service Reviews", &service),
            (
                "get --revision newest",
                "`--revision <N>`: \"newest\" is not a revision (hint: `outrigger history` lists them)",
            ),
            ("delete", "missing <KIND NAME>... (see `outrigger delete --help`)"),
            (
                "delete service",
                "name the Service to delete (hint: outrigger delete Service NAME; `outrigger get Service` lists them)",
            ),
            ("delete service x -f mesh.yaml", "`[KIND NAME]...` cannot be used together with `--filename <FILE>`"),
            ("diff", "missing --filename <FILE> (see `outrigger diff --help`)"),
            ("diff --to 3", "missing --from <N> (see `outrigger diff --help`)"),
            ("diff -f mesh.yaml --from 3", "`--filename <FILE>` cannot be used together with `--from <N>`"),
            ("history service", "name the Service whose history to show (hint: outrigger history Service NAME)"),
            ("history --limit 0", "`--limit <N>`: 0 is not in 1..=10000"),
            ("rollback", "missing <REVISION> (see `outrigger rollback --help`)"),
            ("rollback latest", "`<REVISION>`: \"latest\" is not a revision (hint: `outrigger history` lists them)"),
            ("rollback -1", "unknown flag `-1` (see `outrigger rollback --help`)"),
            ("analyze", "missing --filename <FILE> (see `outrigger analyze --help`)"),
            (
                "analyze -f mesh.yaml --suppress ORG9999",
                "--suppress ORG9999: no such code (hint: `outrigger analyze --list-codes` lists them)",
            ),
            ("config", "missing <PROXY> (see `outrigger config --help`)"),
            ("proxies now", "unknown argument `now` (see `outrigger proxies --help`)"),
            ("token make", "unknown command `make` (see `outrigger token --help`)"),
            ("token create --uses 0", "`--uses <N>`: 0 is not in 1..=4294967295"),
            ("token create --ttl 10ms", "--ttl must be at least 1s"),
            ("token revoke", "missing <ID> (see `outrigger token revoke --help`)"),
            ("completion tcsh", "`<SHELL>`: `tcsh` is not allowed (one of bash, elvish, fish, powershell, zsh)"),
            (
                "get --server https://cp:15010",
                "`--server <HOST:PORT>`: \"https://cp:15010\" has a scheme (hint: write cp:15010 without https://)",
            ),
            ("get --server cp:x", "`--server <HOST:PORT>`: \"cp:x\" has no valid port (hint: write HOST:15010)"),
            (
                "serve --admin here",
                "`--admin <LISTEN>`: \"here\" is not IP:PORT (for example 127.0.0.1:8080 or [::1]:8080)",
            ),
            ("serve --leaf-ttl 5s", "`--leaf-ttl <DURATION>`: 5s is less than 60s, too short to renew in time"),
            (
                "serve --trust-domain Mesh",
                "`--trust-domain <DOMAIN>`: \"Mesh\" is not a domain in lower case (for example cluster.local)",
            ),
            (
                "serve --log-level chatty",
                "`--log-level <LEVEL>`: \"chatty\" is not a level (off, error, warn, info, debug, trace; or \
                 info,outrigger_proxy::tls=debug)",
            ),
            ("serve --log-level inof", "`--log-level <LEVEL>`: \"inof\" is not a level (did you mean \"info\"?)"),
            ("up", "missing --filename <FILE> (see `outrigger up --help`)"),
            ("up -f -", "`up` watches files, so it cannot read standard input (hint: use `serve` and `apply -f -`)"),
        ],
    );
}

#[test]
fn wrong_sidecar_flags_are_answered_with_64_and_an_example() {
    // A sidecar that starts with a flag misunderstood would listen, register or trust something else than meant.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
    fs::write(folder.path().join("token"), "abc.def").unwrap();
    let joined = "proxy --outbound 15001 --control-plane cp --token-file token";
    let fixed = "proxy --outbound 15001 --static mesh.yaml --as shop/r";
    let with = |start: &str, more: &str| format!("{start} {more}");
    let other_name = with(fixed, "--workload q");
    let both = with(fixed, "--control-plane cp");
    let two_identities = with(fixed, "--cert-dir a --dev-ca b");
    check(
        folder.path(),
        64,
        &[
            (
                "proxy",
                "the sidecar has nothing to listen on (hint: add --inbound LISTEN=APP, --outbound LISTEN, --local \
                 LISTEN=SERVICE.NAMESPACE:PORT or --transparent)",
            ),
            (
                "proxy --outbound 15001",
                "the sidecar has no source of configuration (hint: add --control-plane HOST:PORT, or --static FILE --as \
                 NAMESPACE/WORKLOAD to run without one)",
            ),
            (
                "proxy --outbound 15001 --control-plane cp",
                "joining needs a token (hint: make one with `outrigger token create`, then give --token-file FILE)",
            ),
            (
                joined,
                "--workload is required: the name of this instance, unique in its namespace (for example --workload reviews-1)",
            ),
            ("proxy --outbound 15001 --token-file token", "--token-file needs --control-plane HOST:PORT"),
            (
                "proxy --outbound 127.0.0.1",
                "`--outbound <LISTEN>`: address \"127.0.0.1\" has no port (hint: write it as 127.0.0.1:8080)",
            ),
            (
                "proxy --inbound 8443",
                "`--inbound <LISTEN=APP>`: \"8443\" names no application (hint: write LISTEN=APP, for example \
                 127.0.0.1:8443=127.0.0.1:9000)",
            ),
            (
                "proxy --inbound 8443=9000,prt=1",
                "`--inbound <LISTEN=APP>`: \"prt=1\" is not understood (hint: after the addresses come port=N and name=NAME)",
            ),
            (
                "proxy --inbound 8443=9000,port=0",
                "`--inbound <LISTEN=APP>`: port \"0\" is not a number from 1 to 65535",
            ),
            (
                "proxy --inbound 8443=127.0.0.1:8443",
                "--inbound 127.0.0.1:8443=127.0.0.1:8443: the application's address is one this sidecar listens on itself, \
                 which would loop",
            ),
            (
                "proxy --local 7001=reviews",
                "`--local <LISTEN=SERVICE>`: service \"reviews\" has no port (hint: write SERVICE.NAMESPACE:PORT, for example \
                 127.0.0.1:7001=reviews.shop:9080)",
            ),
            (
                "proxy --outbound 15001 --admin 15001",
                "--admin 127.0.0.1:15001: the address is already used by --outbound",
            ),
            ("proxy --outbound 15001 --workers 0", "`--workers <N>`: give a number from 1 to 1024"),
            (
                "proxy --outbound 15001 --runtime tokio",
                "`--runtime <KIND>`: `tokio` is not allowed (one of thread-per-core, multi-thread)",
            ),
            (
                "proxy --outbound 15001 --access-log xml",
                "`--access-log <FORMAT>`: `xml` is not allowed (one of off, text, json)",
            ),
            (
                "proxy --outbound 15001 --label version",
                "`--label <KEY=VALUE>`: \"version\" is not KEY=VALUE (for example version=v1)",
            ),
            (
                "proxy --outbound 15001 --set limits.conections=1",
                "--set limits.conections=1: unknown setting `limits.conections` (did you mean `limits.connections`?)",
            ),
            (
                "proxy --outbound 15001 --set timeouts.idle=5",
                "--set timeouts.idle=5: setting `timeouts.idle` must be a duration such as 10s, not 5",
            ),
            ("proxy --outbound 15001 --port 80", "missing --transparent (see `outrigger proxy --help`)"),
            (
                "proxy --outbound 15001 --static mesh.yaml",
                "missing --as <NAMESPACE/WORKLOAD> (see `outrigger proxy --help`)",
            ),
            (
                "proxy --outbound 15001 --static mesh.yaml --as reviews",
                "`--as <NAMESPACE/WORKLOAD>`: \"reviews\" is not NAMESPACE/WORKLOAD (for example shop/reviews-v1)",
            ),
            (
                &other_name,
                "--as shop/r and --namespace/--workload name different workloads (hint: --as alone is enough)",
            ),
            (&both, "`--static <FILE>` cannot be used together with `--control-plane <HOST:PORT>`"),
            (&two_identities, "`--cert-dir <DIR>` cannot be used together with `--dev-ca <DIR>`"),
            (
                "proxy --outbound 15001 --dev-ca b",
                "missing --as <NAMESPACE/WORKLOAD> and --static <FILE> (see `outrigger proxy --help`)",
            ),
        ],
    );
}

#[test]
fn wrong_files_are_answered_with_65() {
    // A missing or broken file must be told apart from a mesh that is down, before anything is asked or started.
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("mesh.yaml"), MESH).unwrap();
    fs::write(at("latin1.yaml"), b"kind: Service\n# caf\xe9\n").unwrap();
    fs::write(at("bad-settings.yaml"), "limits:\n  conections: 5\n").unwrap();
    fs::write(at("list-settings.yaml"), "- 1\n").unwrap();
    fs::write(at("empty"), "\n").unwrap();
    fs::write(at("two-words"), "not a token\n").unwrap();
    fs::write(at("token"), "abc.def\n").unwrap();
    fs::write(at("nonsense.pem"), "nonsense").unwrap();
    fs::create_dir(at("bare")).unwrap();
    fs::write(at("bare/readme.txt"), "no documents here").unwrap();
    let folder_hint = "(hint: name the control plane's folder with --data-dir)";
    let no_token_file = format!("cannot read admin token nope: no such file {folder_hint}");
    let no_token = format!("admin token two-words does not hold a token: a token is one word {folder_hint}");
    let no_root = format!("cannot read root certificate nope: no such file {folder_hint}");
    let latin1 = "latin1.yaml is not UTF-8 text: wrong byte in line 2 (hint: save it as UTF-8)";
    let bare = "directory bare holds no .yaml, .yml or .json file";
    check(
        folder.path(),
        65,
        &[
            ("apply -f nope.yaml", "cannot read nope.yaml: no such file"),
            ("apply -f mash.yaml", "cannot read mash.yaml: no such file (did you mean mesh.yaml?)"),
            ("apply -f no/such.yaml", "cannot read no/such.yaml: no such file (directory no does not exist either)"),
            ("apply -f bare", bare),
            ("apply -f latin1.yaml", latin1),
            ("apply -f -", "standard input is empty"),
            ("diff -f nope.yaml", "cannot read nope.yaml: no such file"),
            ("delete -f bare", bare),
            ("analyze -f nope.yaml", "cannot read nope.yaml: no such file"),
            ("analyze latin1.yaml", latin1),
            ("up -f nope.yaml", "cannot read nope.yaml: no such file"),
            ("up -f bare", bare),
            ("get --token-file nope", &no_token_file),
            ("get --token-file two-words", &no_token),
            ("get --ca-file nonsense.pem", "root certificate nonsense.pem: it holds no PEM certificate"),
            ("version --ca-file nope", &no_root),
            ("proxy --outbound 15001 --config nope.yaml", "cannot read settings file nope.yaml: no such file"),
            (
                "proxy --outbound 15001 --config bad-settings.yaml",
                "bad-settings.yaml: unknown setting `limits.conections` (did you mean `limits.connections`?)",
            ),
            (
                "proxy --outbound 15001 --config list-settings.yaml",
                "list-settings.yaml: settings must be a mapping such as `limits: {connections: 20000}`, not a list",
            ),
            (
                "proxy --outbound 15001 --control-plane cp --token-file nope",
                "cannot read token file nope: no such file",
            ),
            (
                "proxy --outbound 15001 --control-plane cp --token-file empty",
                "token file empty is empty (hint: make a token with `outrigger token create`)",
            ),
            (
                "proxy --outbound 15001 --control-plane cp --token-file two-words",
                "token file two-words does not hold a token: a token is one word (hint: make one with `outrigger token create`)",
            ),
            (
                "proxy --outbound 15001 --control-plane cp --token-file bare",
                "cannot read token file bare: it is a directory",
            ),
            (
                "proxy --outbound 15001 --control-plane cp --token-file token --root-file nonsense.pem",
                "root certificate nonsense.pem holds no PEM certificate (hint: it must contain -----BEGIN CERTIFICATE-----)",
            ),
            ("proxy --outbound 15001 --static nope.yaml --as shop/r", "cannot read nope.yaml: no such file"),
            (
                "proxy --outbound 15001 --static mesh.yaml --as shop/r --cert-dir nope",
                "certificate folder nope does not exist (hint: --cert-dir takes a folder with tls.crt, tls.key and ca.crt)",
            ),
            (
                "proxy --outbound 15001 --static mesh.yaml --as shop/r --cert-dir bare",
                "cannot read certificate bare/tls.crt: no such file",
            ),
            (
                "proxy --outbound 15001 --static mesh.yaml --as shop/r --dev-ca mesh.yaml",
                "cannot use --dev-ca mesh.yaml: file exists",
            ),
        ],
    );
}

/// An authority that signs leaves of every wrong kind.
struct Signer {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { root: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A leaf and its key.
    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local/ns/shop/sa/r".try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

#[test]
fn wrong_certificates_are_answered_with_65_before_the_sidecar_starts() {
    // Each of these would otherwise show only as "handshake failed" between two sidecars.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
    let (ours, theirs) = (Signer::new("ours"), Signer::new("theirs"));
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let write = |name: &str, (leaf, key): (&str, &str), root: &str| {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("tls.crt"), leaf).unwrap();
        fs::write(folder.join("tls.key"), key).unwrap();
        fs::write(folder.join("ca.crt"), root).unwrap();
    };
    let (leaf, key) = ours.leaf(|_| {});
    let (_, other_key) = ours.leaf(|_| {});
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    write("swapped", (&key, &leaf), &ours.root);
    write("nonsense", ("nonsense", &key), &ours.root);
    write("keyless", (&leaf, &leaf), &ours.root);
    write("other-key", (&leaf, &other_key), &ours.root);
    write("other-root", (&leaf, &key), &theirs.root);
    write("encrypted", (&leaf, encrypted), &ours.root);
    let signed = |name: &str, change: &dyn Fn(&mut CertificateParams)| {
        let (leaf, key) = ours.leaf(|params| change(params));
        write(name, (&leaf, &key), &ours.root);
    };
    signed("nameless", &|params| params.subject_alt_names.clear());
    signed("misnamed", &|params| params.subject_alt_names = vec![uri("spiffe://cluster.local/reviews")]);
    signed("twice", &|params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/q")));
    signed("expired", &|params| params.not_after = rcgen::date_time_ymd(2001, 2, 3));
    signed("future", &|params| params.not_before = rcgen::date_time_ymd(3001, 2, 3));
    signed("server-only", &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    const FORM: &str = "spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT";
    let cases = [
        ("swapped", "swapped/tls.crt holds no PEM certificate; it holds a private key".to_owned()),
        ("nonsense", "nonsense/tls.crt holds no PEM certificate".to_owned()),
        ("keyless", "keyless/tls.key holds no PEM private key; it holds a certificate".to_owned()),
        ("other-key", "other-key/tls.key: the key does not belong to other-key/tls.crt".to_owned()),
        ("other-root", "other-root/tls.crt: not signed by an authority in other-root/ca.crt".to_owned()),
        (
            "encrypted",
            "encrypted/tls.key is encrypted (hint: decrypt it with `openssl pkey -in encrypted/tls.key -out tls.key`)"
                .to_owned(),
        ),
        ("nameless", format!("nameless/tls.crt: it names no SPIFFE identity (hint: add the URI name {FORM})")),
        (
            "misnamed",
            format!("misnamed/tls.crt: its identity \"spiffe://cluster.local/reviews\" is not of the form {FORM}"),
        ),
        ("twice", "twice/tls.crt: it names 2 SPIFFE identities; exactly one is allowed".to_owned()),
        ("expired", "expired/tls.crt expired at 2001-02-03 00:00:00 UTC (hint: issue a new one)".to_owned()),
        (
            "future",
            "future/tls.crt is valid only from 3001-02-03 00:00:00 UTC (hint: compare this machine's clock with the issuer's)"
                .to_owned(),
        ),
        (
            "server-only",
            "server-only/tls.crt: may not be used by a TLS client (hint: a sidecar is both; allow clientAuth and serverAuth)"
                .to_owned(),
        ),
    ];
    let lines: Vec<(String, &str)> = cases
        .iter()
        .map(|(name, message)| {
            (format!("proxy --outbound 15001 --static mesh.yaml --as shop/r --cert-dir {name}"), message.as_str())
        })
        .collect();
    let cases: Vec<(&str, &str)> = lines.iter().map(|(line, message)| (line.as_str(), *message)).collect();
    check(folder.path(), 65, &cases);
}

#[test]
fn wrong_documents_name_file_line_and_exit_code() {
    // `analyze` in CI must fail with 79, `apply` with 65, and both must say where.
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("syntax.yaml"), "kind: Service\n  name: [\n").unwrap();
    fs::write(at("kind.yaml"), "apiVersion: v1\nkind: Servce\nmetadata: {name: reviews}\n").unwrap();
    fs::write(at("field.yaml"), "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n  prots: []\n")
        .unwrap();
    fs::write(at("mesh.yaml"), MESH).unwrap();
    for file in ["syntax.yaml", "kind.yaml", "field.yaml"] {
        let output = run(folder.path(), &["analyze", "-f", file]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let first = text.lines().next().unwrap_or_default();
        assert_eq!(output.status.code(), Some(79), "{file}: {text}");
        assert!(first.contains("[ORG") && first.contains(&format!(" {file}:")), "{file}: {first}");
        let json = run(folder.path(), &["analyze", "-f", file, "-o", "json"]);
        let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert!(value["problems"][0]["line"].as_u64().unwrap() > 0, "{file}: {value}");
    }
    for line in ["apply -f syntax.yaml", "up -f kind.yaml", "proxy --outbound 15001 --static kind.yaml --as shop/r"] {
        let output = run(folder.path(), &line.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(65), "{line}");
        assert!(first_line(&output).starts_with("error[ORG"), "{line}: {}", first_line(&output));
    }
    let good = run(folder.path(), &["analyze", "mesh.yaml"]);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    assert_eq!(String::from_utf8_lossy(&good.stdout), "no problems found (1 object in 1 file)\n");
}

#[test]
fn a_control_plane_that_is_not_there_is_exit_1_with_the_way_out() {
    // The most common first mistake: no control plane is running.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let message = format!(
        "error: cannot reach the control plane at {closed}: connection refused (hint: start one with `outrigger serve`)"
    );
    for line in ["get", "apply -f mesh.yaml", "proxies", "history", "rollback 3", "token list", "config default/x"] {
        let line = format!("{line} --server {closed}");
        let output = run(folder.path(), &line.split(' ').collect::<Vec<_>>());
        assert_eq!((output.status.code(), first_line(&output)), (Some(1), message.clone()), "{line}");
    }
    let missing = run(folder.path(), &["get", "--data-dir", "nowhere"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        first_line(&missing),
        "error: folder nowhere does not exist, so no control plane keeps its things there (hint: start one with `outrigger \
         serve --data-dir nowhere`)"
    );
    let check = run(folder.path(), &["check", "--server", &closed.to_string()]);
    assert_eq!(check.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&check.stdout).contains("× is reachable"));
    let version = run(folder.path(), &["version", "--server", &closed.to_string()]);
    assert_eq!(version.status.code(), Some(0), "a missing control plane is no failure of `version`");
}

#[test]
fn something_else_on_the_admin_port_is_told() {
    // A bare "handshake failed" would not tell a person that the port is the wrong one.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.crt"), Signer::new("root").root).unwrap();
    fs::write(folder.path().join("token"), "abc").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = stream.read(&mut [0; 16]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        // What else was sent is read, so that closing does not reset what we wrote.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let output = run(folder.path(), &["get", "--server", &address, "--ca-file", "ca.crt", "--token-file", "token"]);
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        first_line(&output),
        format!(
            "error: what listens at {address} does not speak TLS (hint: the admin port of a control plane is 15010 unless it \
             was moved)"
        )
    );
}

#[test]
fn processes_that_start_at_once_agree_on_the_shared_authority() {
    // Each making its own root would leave two sidecars that refuse each other.
    use outrigger_control_plane::cli::certificates::shared;
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca");
    let identity = || "spiffe://cluster.local/ns/shop/sa/r".parse().unwrap();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let authority = authority.clone();
            std::thread::spawn(move || shared(&authority, identity()).unwrap().issue().unwrap().roots_pem)
        })
        .collect();
    let roots: Vec<Vec<String>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(roots.iter().all(|root| *root == roots[0]));
    assert_eq!(fs::read_to_string(authority.join("ca.crt")).unwrap().trim(), roots[0][0].trim());
    let again = shared(&authority, identity()).unwrap().issue().unwrap();
    assert_eq!(again.roots_pem, roots[0], "a later start loads it");
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    // `outrigger completion bash | head -1` must not end in a panic message.
    let folder = tempfile::tempdir().unwrap();
    let settings = ["proxy", "--outbound", "15001", "--print-settings"];
    for words in [&["completion", "bash"][..], &["analyze", "--list-codes"], &settings] {
        let mut child = outrigger(folder.path(), words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""), "{words:?}");
    }
}

/// The long flags of a help text.
fn flags(help: &str) -> Vec<String> {
    help.lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")))
        .map(|word| word.trim_end_matches([',', '.']).to_owned())
        .collect()
}

#[test]
fn help_lists_every_command_and_its_flags() {
    // Scripts and documents rely on these names; one that vanishes must be noticed here and not by users.
    let folder = tempfile::tempdir().unwrap();
    const CONNECTION: &str = "--server --data-dir --token-file --ca-file";
    const SERVE: &str = "--data-dir --discovery --admin --monitoring --trust-domain --domain-suffix --leaf-ttl --host-name \
                         --history-limit --log-level --log-format";
    const SIDECAR: &str = "--static --as --cert-dir --dev-ca --log-format --control-plane --token --token-file --root-file \
                           --namespace --workload --service-account --trust-domain --label --locality --inbound --outbound \
                           --local --transparent --address --port --mark --admin --ready --dns --workers --runtime \
                           --access-log --identity-dir --state-dir --log-level --config --set --print-settings";
    let expected: &[(&str, &str, &str)] = &[
        ("up", "--filename --namespace", SERVE),
        ("serve", "", SERVE),
        ("proxy", "", SIDECAR),
        ("apply", "--filename --namespace --wait --timeout --dry-run --message --expect-revision --output", CONNECTION),
        ("get", "--namespace --all-namespaces --revision --output", CONNECTION),
        (
            "delete",
            "--filename --namespace --ignore-not-found --wait --timeout --message --expect-revision --output",
            CONNECTION,
        ),
        ("diff", "--filename --from --to --namespace --exit-code --output", CONNECTION),
        ("history", "--namespace --limit --output", CONNECTION),
        ("rollback", "--wait --timeout --message --output", CONNECTION),
        ("analyze", "--filename --namespace --failure-threshold --suppress --list-codes --output", ""),
        ("check", "--wait --output", CONNECTION),
        ("proxies", "--output", CONNECTION),
        ("config", "--type --output", CONNECTION),
        ("token create", "--namespace --service-account --ttl --uses --output", CONNECTION),
        ("token list", "--output", CONNECTION),
        ("token revoke", "", CONNECTION),
        ("completion", "", ""),
        ("version", "--client --output", CONNECTION),
    ];
    for (command, own, shared) in expected {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = run(folder.path(), &words);
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(help.contains(&format!("Usage: outrigger {command}")), "{command}: {help}");
        let mut wanted: Vec<&str> = own.split_whitespace().chain(shared.split_whitespace()).chain(["--help"]).collect();
        let listed = flags(&help);
        let mut got: Vec<&str> = listed.iter().map(String::as_str).collect();
        wanted.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, wanted, "{command}");
    }
    let help = String::from_utf8_lossy(&run(folder.path(), &["--help"]).stdout).into_owned();
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        commands,
        [
            "demo",
            "up",
            "serve",
            "proxy",
            "intercept",
            "apply",
            "get",
            "delete",
            "diff",
            "history",
            "rollback",
            "analyze",
            "check",
            "proxies",
            "config",
            "token",
            "completion",
            "version",
            "help"
        ]
    );
    for command in ["demo", "intercept"] {
        assert_eq!(run(folder.path(), &[command, "--help"]).status.code(), Some(0), "{command}");
    }
    let bare = run(folder.path(), &[]);
    assert_eq!(bare.status.code(), Some(64));
    assert!(bare.stdout.is_empty());
}
