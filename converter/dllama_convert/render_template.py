"""Renders a chat template as transformers does. Run as a program of its own: a template is a stranger's code.

Reads {"template", "tokens", "requests"} as JSON from stdin, writes {"variables": [...], "results": [{"text"} or
{"error", "refused"}, ...]}; `refused`: the template itself said so. Jinja2's sandbox keeps the template from Python,
the limits below from the machine."""

import datetime
import json
import resource
import sys

import jinja2
import jinja2.meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_CPU_SECONDS = 20
_MEMORY_BYTES = 1 << 30
TODAY = datetime.date(2025, 7, 15)  # for templates with a clock


class Refused(jinja2.TemplateError):
    """raise_exception of a template."""


def _raise_exception(message) -> None:
    raise Refused(str(message))


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """With the settings, filter and functions that transformers gives to templates."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = TODAY.strftime
    return env


def render(template: jinja2.Template, tokens: dict, request: dict) -> dict:
    context = {"add_generation_prompt": True} | tokens | request | request.get("chat_template_kwargs", {})
    try:
        return {"text": template.render(**context)}
    except Refused as error:
        return {"error": str(error), "refused": True}
    except Exception as error:  # whatever a template does wrong
        return {"error": f"{type(error).__name__}: {error}", "refused": False}


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    task = json.load(sys.stdin)
    env = environment()
    try:
        variables = sorted(jinja2.meta.find_undeclared_variables(env.parse(task["template"])))
        template = env.from_string(task["template"])
    except (jinja2.TemplateError, RecursionError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    results = [render(template, task["tokens"], request) for request in task["requests"]]
    json.dump({"variables": variables, "results": results}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
