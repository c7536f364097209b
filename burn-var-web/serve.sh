#!/bin/sh
# Builds the page if that was not done, and serves it: sh burn-var-web/serve.sh [PORT]
set -eu
cd "$(dirname "$0")/.."

port=${1:-8080}
[ -f burn-var-web/dist/model/model.json ] || sh burn-var-web/build.sh
if command -v node >/dev/null; then
    exec node burn-var-web/test/server.mjs burn-var-web/dist "$port"
elif command -v python3 >/dev/null; then
    echo "http://127.0.0.1:$port"
    exec python3 -m http.server --bind 127.0.0.1 --directory burn-var-web/dist "$port"
fi
echo "missing: Node or Python, to serve files. Any other server of static files does it too: the folder is burn-var-web/dist" >&2
exit 1
