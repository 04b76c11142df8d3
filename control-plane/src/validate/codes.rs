//! Every code a problem can have: one table, from which the reference is written.
//!
//! Codes are stable: a number is never given a second meaning. 01xx: how it is written. 02xx: not supported.
//! 03xx: references. 04xx: what it means together with the rest of the mesh.

use super::Severity;

/// One code.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// `ORG` and four digits.
    pub code: &'static str,
    pub severity: Severity,
    /// What it says, in one line.
    pub meaning: &'static str,
}

macro_rules! codes {
    ($($name:ident $code:literal $severity:ident $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub static $name: Code = Code { code: $code, severity: Severity::$severity, meaning: $meaning };
        )*
        /// The table.
        pub static CODES: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    SYNTAX "ORG0101" Error "the text is not valid YAML or JSON";
    NOT_AN_OBJECT "ORG0102" Error "a document is not an object with apiVersion, kind, metadata and spec";
    MISSING "ORG0103" Error "a required field is missing";
    UNKNOWN_FIELD "ORG0104" Error "a field does not exist in this kind";
    WRONG_TYPE "ORG0105" Error "a value has the wrong type";
    OUT_OF_RANGE "ORG0106" Error "a number is outside its range";
    UNKNOWN_WORD "ORG0107" Error "a word is not one of those the field knows";
    BAD_NAME "ORG0108" Error "a name or label is not a valid Kubernetes name";
    BAD_DURATION "ORG0109" Error "a duration cannot be read";
    BAD_ADDRESS "ORG0110" Error "an address is not an IP address";
    DUPLICATE "ORG0111" Error "two entries of a list have the same name or number";
    EXCLUSIVE "ORG0112" Error "fields that exclude each other are both set";
    TOO_MANY "ORG0113" Error "a list is longer than the API allows";
    BAD_REGEX "ORG0114" Error "a regular expression cannot be compiled";
    BAD_PATH "ORG0115" Error "a path is not a canonical absolute path";
    BAD_HEADER "ORG0116" Error "a header name or value is not legal in HTTP";
    BAD_HOST "ORG0117" Error "a host name is not valid";
    SAME_OBJECT "ORG0118" Error "the same object is defined twice";
    INCONSISTENT "ORG0119" Error "values contradict each other";

    KIND_NOT_SUPPORTED "ORG0201" Warning "a kind is known but not supported yet";
    SECURITY_KIND_NOT_SUPPORTED "ORG0202" Error "a kind that protects something is not supported yet";
    FIELD_NOT_SUPPORTED "ORG0203" Warning "a field is known but not supported yet";
    SECURITY_FIELD_NOT_SUPPORTED "ORG0204" Error "a field that protects something or changes answers is not supported yet";
    UDP_IGNORED "ORG0208" Info "a Service port that is not TCP is left alone";
    UNKNOWN_KIND "ORG0205" Error "a kind does not exist";
    UNKNOWN_API_VERSION "ORG0206" Error "a kind does not exist in this apiVersion";
    NEVER_SUPPORTED "ORG0207" Error "a kind depends on another mesh's proxy and will not be supported";

    PARENT_NOT_FOUND "ORG0301" Warning "a route's parent Service does not exist";
    PARENT_PORT_NOT_FOUND "ORG0302" Warning "a route's parent Service has no such port";
    BACKEND_NOT_FOUND "ORG0303" Warning "a backend Service does not exist";
    BACKEND_PORT_NOT_FOUND "ORG0304" Warning "a backend Service has no such port";
    REFERENCE_KIND "ORG0305" Warning "a reference points to a kind that cannot be used there";
    PARENT_GROUP "ORG0306" Warning "a parentRef of kind Service lacks the empty group";
    TARGET_NOT_FOUND "ORG0307" Warning "a policy's target does not exist";
    UNKNOWN_DESTINATION_HOST "ORG0308" Warning "a DestinationRule's host is no known service";
    SLICE_WITHOUT_SERVICE "ORG0309" Warning "an EndpointSlice belongs to no known Service, or its ports match none of the Service's";
    REFERENCE_KIND_REFUSED "ORG0311" Error "a policy is attached to a kind it cannot be attached to";
    PARENT_HEADLESS "ORG0310" Warning "a route's parent is a Service that cannot be a parent";

    HOSTNAMES_IGNORED "ORG0401" Warning "hostnames of a route on a Service have no effect";
    ROUTE_CONFLICT "ORG0402" Warning "two kinds of routes want the same Service port; one loses";
    HTTP_ON_TCP "ORG0403" Warning "an HTTP route is attached to a port that does not speak HTTP";
    UNMATCHED_PATHS "ORG0404" Info "routes leave part of a Service's paths without a rule";
    REGEX_AND_PREFIX "ORG0405" Info "a regular expression and a prefix may both match; the longer text wins";
    CONSUMER_ROUTE "ORG0406" Info "a route in another namespace than its Service applies to clients of its own namespace only";
    UNREACHABLE_MATCH "ORG0407" Warning "a match can never be reached: an earlier one is the same";
    CONSUMER_POLICY "ORG0408" Info "a DestinationRule applies to clients of its own namespace only";
    POLICY_HIDDEN "ORG0409" Warning "a DestinationRule hides another one entirely";
    PORT_POLICY_RESETS "ORG0410" Warning "portLevelSettings replace the general settings of the same policy";
    DUPLICATE_POLICY "ORG0411" Warning "two policies want the same thing; the older wins";
    PEER_PORT_UNCLAIMED "ORG0412" Warning "portLevelMtls names a service port where it needs the workload's port";
    HOST_NOT_COMPLETED "ORG0413" Warning "a host with a dot is taken as complete, and no service has that name";
    WEIGHTS_ZERO "ORG0414" Warning "all weights of a rule are zero";
    NAME_TAKEN "ORG0415" Warning "two services claim one host or address; the older wins";
    RETRIES_CUT "ORG0416" Warning "the request timeout ends before all retries can run";
    SELECTOR_IN_ROOT "ORG0417" Info "a policy with a selector in the root namespace applies to that namespace's workloads only";
    ANY_IDENTITY "ORG0418" Info "endpoints with mesh TLS name no service account; any identity of the trust domain is accepted";
}
