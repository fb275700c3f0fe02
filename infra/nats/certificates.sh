#!/bin/sh
# Makes a private authority and certificates for a trial: one for each broker named, one for clients and services.
#
#   infra/nats/certificates.sh DIRECTORY [BROKER...]     default: broker-1 broker-2 broker-3
#
# DIRECTORY then holds ca.pem, for everybody; BROKER.pem and BROKER-key.pem, to be broker.pem and broker-key.pem in
# /etc/shoal/tls of that broker; client.pem and client-key.pem, for SHOAL_TLS_CERT and SHOAL_TLS_KEY. Run again, it
# keeps the authority and what is there. ca-key.pem signs whatever it is asked to: keep it off the machines.
set -eu
directory=${1:?"say in which directory"}
shift
[ $# -gt 0 ] || set -- broker-1 broker-2 broker-3
umask 077
mkdir -p "$directory"
cd "$directory"
days=825

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

# certificate NAME USAGE [ALTERNATIVE NAMES]
certificate() {
    [ ! -e "$1.pem" ] || return 0
    key "$1-key.pem"
    openssl req -new -key "$1-key.pem" -subj "/O=Shoal/CN=$1" -out "$1.csr"
    {
        echo "basicConstraints = critical, CA:FALSE"
        echo "keyUsage = critical, digitalSignature"
        echo "extendedKeyUsage = $2"
        echo "subjectKeyIdentifier = hash"
        echo "authorityKeyIdentifier = keyid"
        [ -z "${3:-}" ] || echo "subjectAltName = $3"
    } > "$1.extensions"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days "$days" \
        -extfile "$1.extensions" -out "$1.pem" 2>/dev/null
    rm -f "$1.csr" "$1.extensions"
}

if [ ! -e ca.pem ]; then
    key ca-key.pem
    openssl req -x509 -new -key ca-key.pem -days "$days" -subj "/O=Shoal/CN=Shoal trial authority" \
        -addext "basicConstraints = critical, CA:TRUE" -addext "keyUsage = critical, keyCertSign, cRLSign" -out ca.pem
fi
for broker in "$@"; do
    # A broker is a server to clients, and both server and client to the other brokers.
    certificate "$broker" "serverAuth, clientAuth" "DNS:$broker, DNS:localhost, IP:127.0.0.1"
done
certificate client clientAuth
chmod 0644 ./*.pem
chmod 0600 ./*-key.pem
echo "certificates for $* and clients are in $directory"
