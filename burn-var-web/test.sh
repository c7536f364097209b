#!/bin/sh
# Tests the page in headless Chromium: sh burn-var-web/test.sh [--install]
#
# Needs Node 20 or newer, Chromium (CHROMIUM names it, if it is not found), and what build.sh needs. --install installs what
# build.sh needs, and the driver of the browser, from npm, is installed always. Images are compared with those of the
# command: BURN_VAR, or else a release build of it. SCREENSHOTS names a folder for images of the page.
set -eu
cd "$(dirname "$0")/.."

command -v node >/dev/null || { echo "missing: Node 20 or newer, from https://nodejs.org" >&2; exit 1; }
if [ -z "${CHROMIUM:-}" ]; then
    for name in chromium chromium-browser google-chrome; do
        CHROMIUM=$(command -v "$name") && break
    done
fi
[ -n "${CHROMIUM:-}" ] || { echo "missing: Chromium; on Debian: apt-get install chromium" >&2; exit 1; }

sh burn-var-web/build.sh "$@"
BURN_VAR=${BURN_VAR:-${CARGO_TARGET_DIR:-target}/release/burn-var}
[ -x "$BURN_VAR" ] || cargo build --release --locked --workspace
(cd burn-var-web/test && [ -d node_modules/playwright-core ] || npm ci --no-audit --no-fund --silent)

export CHROMIUM BURN_VAR DIST=burn-var-web/dist MODEL=models/fashion-mnist
exec node --test --test-reporter=spec burn-var-web/test/browser.test.mjs
