"""sslyze's scans of one TLS 1.3 listener on loopback: sslyze_scans.py PORT."""

import sys

from sslyze import ScanCommand, ServerNetworkConfiguration, ServerNetworkLocation
from sslyze.plugins.scan_commands import ScanCommandsRepository
from sslyze.server_connectivity import (
    ClientAuthRequirementEnum,
    ServerConnectivityInfo,
    ServerTlsProbingResult,
    TlsVersionEnum,
)

location = ServerNetworkLocation("127.0.0.1", port=int(sys.argv[1]), ip_address="127.0.0.1")
server = ServerConnectivityInfo(
    server_location=location,
    network_configuration=ServerNetworkConfiguration.default_for_server_location(location),
    tls_probing_result=ServerTlsProbingResult(
        highest_tls_version_supported=TlsVersionEnum.TLS_1_3,
        cipher_suite_supported="TLS_AES_256_GCM_SHA384",
        client_auth_requirement=ClientAuthRequirementEnum.OPTIONAL,
        supports_ecdh_key_exchange=True,
    ),
)


def scan(command):
    return ScanCommandsRepository.get_implementation_cls(command).scan_server(server)


bad = []
for old in ("SSL_2_0", "SSL_3_0", "TLS_1_0", "TLS_1_1", "TLS_1_2"):
    if scan(getattr(ScanCommand, f"{old}_CIPHER_SUITES")).accepted_cipher_suites:
        bad.append(f"{old} is accepted")
suites = [found.cipher_suite.name for found in scan(ScanCommand.TLS_1_3_CIPHER_SUITES).accepted_cipher_suites]
if not suites or any("CCM" in suite for suite in suites):
    bad.append(f"cipher suites of TLS 1.3: {suites}")
if scan(ScanCommand.HEARTBLEED).is_vulnerable_to_heartbleed:
    bad.append("heartbleed")
if scan(ScanCommand.OPENSSL_CCS_INJECTION).is_vulnerable_to_ccs_injection:
    bad.append("CCS injection")
if scan(ScanCommand.TLS_COMPRESSION).supports_compression:
    bad.append("compression")
if scan(ScanCommand.ROBOT).robot_result.name.startswith("VULNERABLE"):
    bad.append("ROBOT")
print(f"== TLS 1.3 with {', '.join(suites)}; {len(bad)} bad")
print("\n".join(bad))
sys.exit(1 if bad else 0)
