"""Settings that the tests share: the server's URL, its models, and clients for it."""

import httpx2
import openai

# An answer of a few tokens takes well under a second: after minutes, something hangs.
TIMEOUT_SECONDS = 120

# The ticket answers this with SQL, the base with an explanation.
SQL_QUESTION = [
    {
        "role": "user",
        "content": "CREATE TABLE head (age INTEGER, name VARCHAR)\n"
        "-- How many heads are older than 56?",
    }
]
CAPITAL_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

url = base = ticket = ticket_file = ""


def use(url: str, base: str, ticket: str, ticket_file: str) -> None:
    globals().update(url=url.rstrip("/"), base=base, ticket=ticket, ticket_file=ticket_file)


def openai_client() -> openai.OpenAI:
    """A client without retries that ignores proxies."""
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        max_retries=0,
        timeout=TIMEOUT_SECONDS,
        http_client=http,
    )


def http_client() -> httpx2.Client:
    """A plain client for the routes that the openai package does not know."""
    return httpx2.Client(base_url=f"{url}/v1", timeout=TIMEOUT_SECONDS, trust_env=False)
