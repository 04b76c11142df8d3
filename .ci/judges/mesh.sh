# Sourced by `run`: two sidecars in static mode, an origin of HTTP/1, one of HTTP/2 if there is a program for it, a control plane, and a bridge by
# which programs without a client certificate reach the TLS of the inbound side.

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# listening PORT: waits until somebody is there.
listening() {
  local tries
  for tries in $(seq 200); do
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0
    sleep 0.05
  done
  echo "nobody listens on $1"
  return 1
}

# start NAME COMMAND...: in the background, with its output in a file.
start() {
  local name="$1"
  shift
  "$@" >"$work/$name.log" 2>&1 &
  pids+=("$!")
}

start_mesh() {
  local name origin http2_origin
  for name in H1_OUTBOUND H1_INBOUND H2_OUTBOUND H2_INBOUND H2_INBOUND_TLS CONTROL_PLANE; do
    export "$name=$(free_port)"
  done
  origin="$(free_port)"
  http2_origin="$(free_port)"
  mkdir -p "$work/www"
  head -c 100000 /dev/zero | tr '\0' a >"$work/www/large"
  echo hello >"$work/www/index.html"
  start origin python3 "$here/origin.py" "$origin"
  if command -v nghttpd >/dev/null 2>&1; then
    start http2-origin nghttpd --no-tls --address=127.0.0.1 --htdocs="$work/www" "$http2_origin"
    listening "$http2_origin" || return 1
  fi
  listening "$origin" || return 1
  cat >"$work/mesh.yaml" <<YAML
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: one, namespace: shop}
spec: {address: 127.0.0.1, ports: {http: $origin}, labels: {app: one}, serviceAccount: one}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: two, namespace: shop}
spec: {address: 127.0.0.1, ports: {http2: $http2_origin}, labels: {app: two}, serviceAccount: two}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: app, namespace: shop}
spec: {address: 127.0.0.1, labels: {app: app}, serviceAccount: app}
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: shop}
spec: {selector: {app: one}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {selector: {app: two}, ports: [{name: http2, port: 80}]}
YAML
  # In the background and out of the way of each other: the first makes the authority, the second waits for it.
  start sidecar "$OUTRIGGER" proxy --static "$work/mesh.yaml" --as shop/app --dev-ca "$work/ca" --workers 1 \
    --local "127.0.0.1:$H1_OUTBOUND=one.shop:80" --local "127.0.0.1:$H2_OUTBOUND=two.shop:80" \
    --inbound "127.0.0.1:$H1_INBOUND=127.0.0.1:$origin,port=8080,name=http" \
    --inbound "127.0.0.1:$H2_INBOUND=127.0.0.1:$http2_origin,port=8081,name=http2"
  start control-plane "$OUTRIGGER" serve --data-dir "$work/plane" --discovery "127.0.0.1:$CONTROL_PLANE" \
    --admin "127.0.0.1:$(free_port)" --monitoring off
  listening "$H2_INBOUND" && listening "$H1_OUTBOUND" && listening "$CONTROL_PLANE" || return 1
  # A leaf of the mesh's own authority, as any workload has one.
  export LEAF="$work/leaf"
  openssl ecparam -genkey -name prime256v1 -noout -out "$LEAF.key" 2>"$work/openssl.log" &&
    openssl req -new -key "$LEAF.key" -subj / -out "$LEAF.csr" 2>>"$work/openssl.log" &&
    openssl x509 -req -in "$LEAF.csr" -CA "$work/ca/ca.crt" -CAkey "$work/ca/ca.key" -CAcreateserial -days 1 -out "$LEAF.crt" \
      -extfile <(printf 'subjectAltName=critical,URI:spiffe://cluster.local/ns/shop/sa/judge\nextendedKeyUsage=clientAuth\nkeyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n') \
      2>>"$work/openssl.log" || return 1
  start bridge python3 "$here/bridge.py" "$H2_INBOUND_TLS" "$H2_INBOUND" "$LEAF.crt" "$LEAF.key"
  listening "$H2_INBOUND_TLS"
}
