//! `tombola completions`: a shell completion script.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use super::base::print;

/// Arguments of `tombola completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell to complete in.
    shell: Shell,
}

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tombola completions bash > ~/.local/share/bash-completion/completions/tombola
  tombola completions zsh > \"${fpath[1]}/_tombola\"
  tombola completions fish > ~/.config/fish/completions/tombola.fish";

/// Prints the script.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tombola", &mut script);
    print(&String::from_utf8(script)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script() {
        for shell in [
            Shell::Bash,
            Shell::Elvish,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Zsh,
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tombola", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("ticket-mode"), "{shell}");
        }
    }
}
