#!/usr/bin/env bash
# Parley from a shell: bash examples/curl.sh [http://localhost:8000]
# PARLEY_API_KEY is one of the server's PARLEY_API_KEYS, if it has any.
set -euo pipefail
server=${1:-http://localhost:8000}
curl=(curl --no-progress-meter --fail-with-body --header "Authorization: Bearer ${PARLEY_API_KEY:-none}")

echo '# What is served'
"${curl[@]}" "$server/v1/models"

echo -e '\n# An answer as it is written (--no-buffer), as OpenAI sends it'
"${curl[@]}" --no-buffer "$server/v1/chat/completions" --json '{
    "messages": [{"role": "user", "content": "Describe the sea in one sentence."}],
    "max_tokens": 60,
    "stream": true
}'

echo '# A whole answer, on the simple route, which remembers the conversation'
"${curl[@]}" "$server/chat/new/message/" --json '{"prompt": "How many days are in a week?", "max_tokens": 20}'

echo -e '\n# What was said'
"${curl[@]}" "$server/chat/get/messages/"

echo -e '\n# As a browser reads it: ids to go on from, and a last event'
"${curl[@]}" --no-buffer --get "$server/chat/stream" --data-urlencode 'prompt=What is the opposite of hot?' --data max_tokens=8

echo '# A text as a vector'
"${curl[@]}" "$server/v1/embeddings" --json '{"input": "A cat sleeps on the sofa.", "dimensions": 4}'
echo
