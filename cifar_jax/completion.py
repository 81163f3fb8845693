"""Completion of the command `cifar-jax` in bash and zsh: `source <(cifar-jax completion)`.

Of commands, flags, the fields of the config, and the names of recipes and of what else can only be
one of a few. Paths are completed by the shell itself.
"""

from collections.abc import Iterable, Mapping

# Readline breaks --flag=value into three words; zsh's emulation does not.
_SCRIPT = """\
_cifar_jax() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
  local flag="" words="" prefix=""
  if [ "$word" = = ]; then flag="$before" word=""
  elif [ "$before" = = ]; then flag="${COMP_WORDS[COMP_CWORD-2]}"
  elif [[ "$word" = --*=* ]]; then flag="${word%%=*}" prefix="${word%%=*}=" word="${word#*=}"
  elif [ "$COMP_CWORD" = 1 ]; then words="@COMMANDS@"
  elif [[ "$word" = --config.* ]]; then words="@FIELDS@"
  elif [[ "$word" = -* ]]; then words="@FLAGS@"
  fi
  case "$flag" in
@CASES@
  esac
  COMPREPLY=($(compgen -P "$prefix" -W "$words" -- "$word"))
  [[ "${COMPREPLY[0]}" != *= ]] || compopt -o nospace 2> /dev/null
}
if [ -n "$ZSH_VERSION" ]; then
  autoload -Uz bashcompinit && bashcompinit
  complete -o default -o nospace -F _cifar_jax cifar-jax
else
  complete -o default -F _cifar_jax cifar-jax
fi
"""


def script(
    commands: Iterable[str],
    flags: Iterable[str],
    fields: Iterable[str],
    choices: Mapping[str, Iterable[str]],
) -> str:
    """For a shell to read. `flags` and the `fields` of a config are without dashes, those that take
    a value end in "="; `choices` are the values that a flag has, by its name."""
    parts = {
        "COMMANDS": " ".join(commands),
        "FIELDS": " ".join(f"--config.{name}=" for name in fields),
        "FLAGS": " ".join(f"--{name}" for name in flags),
        "CASES": "\n".join(
            f'    --{name}) words="{" ".join(values)}" ;;' for name, values in choices.items()
        ),
    }
    found = _SCRIPT
    for name, text in parts.items():
        found = found.replace(f"@{name}@", text)
    return found
