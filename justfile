# The everyday commands. `just` lists them.

default:
    @just --list

# Format, lint, test: what a change must pass.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo test --workspace

# All tests; those with network namespaces skip themselves without root.
test:
    cargo test --workspace

# All tests, and network-namespace tests must run (root, iptables, nft, iproute2).
test-all:
    OUTRIGGER_REQUIRE_NETNS=1 cargo test --workspace

# Judges from outside (h2spec, slowhttptest, curl, OpenSSL, testssl.sh, sslyze) against a build that is there: `just judges --quick`.
judges *args:
    .ci/judges/run {{args}}

# Every fuzz target, 60 s each: `just fuzz`, `just fuzz 600`, `just fuzz 60 h1_request_head`.
fuzz seconds="60" *targets:
    .ci/fuzz {{seconds}} {{targets}}

# A whole mesh in one terminal.
demo *args:
    cargo run --release -- demo {{args}}

# The API documentation, with broken links denied.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Dependency rules.
deny:
    cargo deny check licenses bans sources

# Write the expected files of the compile cases anew; look at the difference before committing.
golden:
    OUTRIGGER_REWRITE_CASES=1 cargo test -p outrigger-control-plane --test compile_cases

# Write the generated pages of docs/ anew; look at the difference before committing.
docs:
    OUTRIGGER_REWRITE_DOCS=1 cargo test -p outrigger-proxy -p outrigger-control-plane --test references

# Outrigger beside its peers: `just bench two-hops`. See bench/README.md.
bench *args:
    cargo build --release --bin outrigger --bin outrigger-bench -p outrigger-control-plane -p outrigger-bench
    target/release/outrigger-bench run {{args}}

# The committed figures and the README's performance section, measured anew: more than an hour on a quiet machine.
figures *args:
    cargo build --release --bin outrigger --bin outrigger-bench -p outrigger-control-plane -p outrigger-bench
    mkdir -p bench/results
    target/release/outrigger-bench run --rounds 5 --json bench/results/reference.json --html target/bench.html {{args}}
    target/release/outrigger-bench readme bench/results/reference.json
