//! The mesh's configuration as the demo's user would write it: YAML documents, applied through the admin API. Pure.

use super::topology::{NAMESPACE, SERVICE_PORT};

/// Name of the CircuitBreaker for ratings.
pub const BREAKER: &str = "ratings";

/// A file of documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub file: &'static str,
    pub text: String,
}

/// Everything that is applied at the start; the canary stands at 0 %.
pub fn initial() -> Vec<Document> {
    vec![
        Document { file: "services.yaml", text: services() },
        Document { file: "mutual-tls.yaml", text: mutual_tls() },
        Document { file: "ratings.yaml", text: ratings() },
        canary(0),
    ]
}

fn services() -> String {
    let mut documents = Vec::new();
    let all = [
        ("frontend", "app: frontend"),
        ("reviews", "app: reviews"),
        ("reviews-v1", "app: reviews, version: v1"),
        ("reviews-v2", "app: reviews, version: v2"),
        ("ratings", "app: ratings"),
    ];
    for (name, selector) in all {
        documents.push(format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  selector: {{{selector}}}
  ports:
  - {{name: http, port: {SERVICE_PORT}, targetPort: {SERVICE_PORT}}}
"
        ));
    }
    documents.join("---\n")
}

fn mutual_tls() -> String {
    format!(
        "# Nothing in the shop takes plaintext.
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: {NAMESPACE}}}
spec:
  mtls: {{mode: STRICT}}
"
    )
}

/// Retries, breaker and fallback of ratings.
///
/// Up to six further tries: with one answer in ten failing, one request in ten million is left without an answer.
fn ratings() -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: ratings, namespace: {NAMESPACE}}}
spec:
  parentRefs:
  - {{group: \"\", kind: Service, name: ratings, port: {SERVICE_PORT}}}
  rules:
  - retry: {{codes: [502, 503, 504], attempts: 6, backoff: 25ms}}
    backendRefs:
    - {{name: ratings, port: {SERVICE_PORT}}}
---
apiVersion: outrigger.mesh/v1alpha1
kind: CircuitBreaker
metadata: {{name: {BREAKER}, namespace: {NAMESPACE}}}
spec:
  targetRefs:
  - {{group: \"\", kind: Service, name: ratings}}
  window: 2s
  minimumRequests: 20
  failurePercent: 50
  openFor: 2s
  maxOpenFor: 4s
  halfOpen: {{requests: 1, successes: 3}}
  fallback:
    maxConcurrent: 1000
    reply:
      status: 200
      contentType: application/json
      body: '{{\"service\": \"ratings\", \"version\": \"fallback\", \"stars\": []}}'
"
    )
}

/// The canary: this percentage of reviews goes to v2.
pub fn canary(percent: u32) -> Document {
    swap(percent, 0)
}

/// The canary together with a header that tells one swap from the next, so that each is a change to apply.
pub fn swap(percent: u32, number: u32) -> Document {
    let filters = if number == 0 {
        String::new()
    } else {
        format!(
            "
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{set: [{{name: x-shop-swap, value: \"{number}\"}}]}}"
        )
    };
    let old = 100_u32.saturating_sub(percent);
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: reviews, namespace: {NAMESPACE}}}
spec:
  parentRefs:
  - {{group: \"\", kind: Service, name: reviews, port: {SERVICE_PORT}}}
  rules:
  - backendRefs:
    - {{name: reviews-v1, port: {SERVICE_PORT}, weight: {old}}}
    - {{name: reviews-v2, port: {SERVICE_PORT}, weight: {percent}}}{filters}
"
    );
    Document { file: "canary.yaml", text }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_yaml_and_every_swap_is_a_change() {
        // A swap that changes nothing would be counted although nothing was swapped.
        let mut documents = initial();
        documents.extend((1..4).map(|number| swap(50, number)));
        for document in &documents {
            for part in document.text.split("---\n") {
                let object: serde_json::Value = serde_saphyr::from_str(part).unwrap();
                assert_eq!(object["metadata"]["namespace"], NAMESPACE, "{part}");
                assert!(object["spec"].is_object(), "{part}");
            }
        }
        assert_ne!(swap(50, 1), swap(50, 2));
        let route: serde_json::Value = serde_saphyr::from_str(&swap(10, 3).text).unwrap();
        let backends = route["spec"]["rules"][0]["backendRefs"].as_array().unwrap();
        assert_eq!((backends[0]["weight"].clone(), backends[1]["weight"].clone()), (90.into(), 10.into()));
    }

    #[test]
    fn the_mesh_accepts_every_document_without_a_word() {
        // A warning in the very first run would teach newcomers to ignore warnings.
        let documents = initial().into_iter().chain([canary(50), swap(10, 7)]);
        for document in documents {
            let (objects, problems) = crate::api::parse(document.file, &document.text, NAMESPACE);
            assert!(problems.is_empty(), "{}", problems[0]);
            assert!(!objects.is_empty(), "{}", document.file);
        }
    }

    #[test]
    fn the_fallback_is_recognisable() {
        // Traffic tells fallback answers from real ones by this word alone.
        let breaker: serde_json::Value = serde_saphyr::from_str(ratings().split("---\n").nth(1).unwrap()).unwrap();
        let body = breaker["spec"]["fallback"]["reply"]["body"].as_str().unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["version"], "fallback");
    }
}
