"""Completion of the command `cifar-jax`: `source <(cifar-jax completion bash)`, in zsh after
compinit `source <(cifar-jax completion zsh)`, in fish `cifar-jax completion fish | source`.

Of commands, flags, the fields of the config, and the names of recipes and of what else can only be
one of a few. Paths are completed by the shell itself. Imports nothing: a shell waits at its start.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")

# Readline breaks --flag=value into three words; zsh's emulation does not.
_BASH = """\
_cifar_jax() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
  local flag="" words="" prefix=""
  if [ "$COMP_CWORD" = 1 ]; then words="@COMMANDS@"
  elif [[ " @MODES@ " != *" ${COMP_WORDS[1]} "* ]]; then flag="${COMP_WORDS[1]}"
  elif [ "$word" = = ]; then flag="$before" word=""
  elif [ "$before" = = ]; then flag="${COMP_WORDS[COMP_CWORD-2]}"
  elif [[ "$word" = --*=* ]]; then flag="${word%%=*}" prefix="${word%%=*}=" word="${word#*=}"
  elif [[ "$word" = --config.* ]]; then words="@FIELDS@"
  elif [[ "$word" = -* ]]; then words="@FLAGS@"
  fi
  case "$flag" in
    completion) words="@SHELLS@" ;;
@CASES@
  esac
  COMPREPLY=($(compgen -P "$prefix" -W "$words" -- "$word"))
  [[ "${COMPREPLY[0]}" != *= ]] || compopt -o nospace 2> /dev/null
}
if [ -n "$ZSH_VERSION" ]; then
  autoload -Uz bashcompinit && bashcompinit
  _cifar_jax_zsh() { _bash_complete -o nospace -F _cifar_jax || { compset -P '--*='; _files; }; }
  compdef _cifar_jax_zsh cifar-jax
else
  complete -o default -F _cifar_jax cifar-jax
fi
"""

_FISH = """\
function __cifar_jax_mode; __fish_seen_subcommand_from @MODES@; end
complete -c cifar-jax -f -n __fish_use_subcommand -a "@COMMANDS@"
complete -c cifar-jax -f -n "__fish_seen_subcommand_from completion" -a "@SHELLS@"
@OPTIONS@
"""


def script(
    shell: str,
    modes: Sequence[str],
    others: Iterable[str],
    flags: Iterable[str],
    config: Mapping[str, object],
    choices: Mapping[str, Iterable[str]],
) -> str:
    """What `shell`, one of SHELLS, reads.

    `flags` are those of the commands in `modes`, without dashes, and end in "=" where they take a
    value; `others` are the commands that have flags of their own; of `config`, nested dicts, only
    the names matter; `choices` are the values that a flag may have, by its name.
    """
    values = {name: " ".join(few) for name, few in choices.items()}
    flags, fields = list(flags), [f"{path}=" for path in _paths(config, "config.")]
    parts = {
        "COMMANDS": " ".join([*modes, *others]),
        "MODES": " ".join(modes),
        "SHELLS": " ".join(SHELLS),
        "FIELDS": " ".join(f"--{path}" for path in fields),
        "FLAGS": " ".join(f"--{name}" for name in flags),
        "CASES": "\n".join(f'    --{name}) words="{few}" ;;' for name, few in values.items()),
        "OPTIONS": "\n".join(_option(name, values) for name in [*flags, *fields]),
    }
    found = _FISH if shell == "fish" else _BASH
    for name, text in parts.items():
        found = found.replace(f"@{name}@", text)
    return found


def _paths(fields: Mapping[str, object], before: str) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{before}{name}.")
        else:
            yield before + name


def _option(flag: str, values: Mapping[str, str]) -> str:
    """fish's line for a flag; a recipe may be a file as well."""
    name, takes_value, _ = flag.partition("=")
    kind = " -r" if takes_value else " -f"
    if few := values.get(name):
        kind = f' -{"r" if name == "config" else "x"} -a "{few}"'
    return f"complete -c cifar-jax -n __cifar_jax_mode -l {name}{kind}"
