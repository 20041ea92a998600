#!/bin/sh
# Starts this node's worker; dllama is beside this file, on the PATH, or named by DLLAMA_PROGRAM.
here=$(cd "$(dirname "$0")" && pwd)
program=${DLLAMA_PROGRAM:-dllama}
[ -x "$here/dllama" ] && program=$here/dllama
exec "$program" worker --port @PORT@ --secret-file "$here/secret" "$@"
