//! Go templates over a message, as Alertmanager's users write them.
//!
//! The engine is `gotmpl`, which knows maps and lists but no methods. Templates are therefore rewritten
//! when they are parsed: `.Alerts.Firing` or `.StartsAt.Format "15:04"` become calls of one function that
//! knows what Alertmanager's types can do (`value.rs`). Time, loops, recursion and output are bounded:
//! a template is part of the configuration, but what it prints comes from telemetry. Not here: payloads.

mod functions;
pub mod rule;
mod time;
mod value;

use std::fmt;

use gotmpl::parse::{BranchNode, CommandNode, Expr, ListNode, Node, Number, Parser, PipeNode, Pos};
use gotmpl::{FuncMap, MissingKey, Value};

use crate::error::AlertingError;
use crate::notification::Notification;

/// Bytes one template may print. Slack takes 40 000 characters, an email of this size is no message.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;

/// Steps of all loops of one execution together.
const RANGE_STEPS_MAX: u64 = 100_000;

/// The name of a text that is expanded; nobody's template has it.
const TEXT_NAME: &str = "__text";

/// The function that stands for fields and methods.
const PATH: &str = "__path";

/// The templates that Alertmanager's configurations refer to by name.
const DEFAULTS: &str = include_str!("default.tmpl");

/// A set of templates, parsed.
#[derive(Clone)]
pub struct Templates {
    text: gotmpl::Template,
    html: gotmpl::html::Template,
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Templates").field("names", &self.text.templates()).finish()
    }
}

/// What templates see of a message.
#[derive(Clone, Debug)]
pub struct Data(Value);

impl Data {
    /// The data of a message. `external_url` is where people reach this program.
    #[must_use]
    pub fn new(notification: &Notification, external_url: &str) -> Self {
        Self(value::data(notification, external_url, str::to_owned))
    }

    /// The data with every text that comes from telemetry made inert by `escape`. What the template
    /// itself says stays as it is: it is the configuration's.
    #[must_use]
    pub fn escaped(notification: &Notification, external_url: &str, escape: fn(&str) -> String) -> Self {
        Self(value::data(notification, external_url, escape))
    }
}

/// A writer that refuses more than it may hold.
#[derive(Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > OUTPUT_BYTES_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

fn parse(name: &str, source: &str) -> Result<(ListNode, Vec<(String, ListNode)>), AlertingError> {
    let failed =
        |error: gotmpl::TemplateError| AlertingError::Template { name: name.to_owned(), reason: error.to_string() };
    let (mut body, defines) = Parser::new(source, "{{", "}}").and_then(Parser::parse).map_err(failed)?;
    rewrite_list(&mut body);
    let defines = defines.into_iter().map(|mut define| {
        rewrite_list(&mut define.body);
        (define.name.to_string(), define.body)
    });
    Ok((body, defines.collect()))
}

impl Templates {
    /// Parses the default templates and then the given ones (name for messages, text), later ones
    /// replacing earlier ones of the same name.
    ///
    /// # Errors
    ///
    /// When one of them is no template; the error has its name and line.
    pub fn new(sources: &[(String, String)]) -> Result<Self, AlertingError> {
        let functions: FuncMap = functions::all();
        let mut text = gotmpl::Template::new("").missing_key(MissingKey::Invalid).max_range_iters(RANGE_STEPS_MAX);
        let mut html =
            gotmpl::html::Template::new("").missing_key(MissingKey::Invalid).max_range_iters(RANGE_STEPS_MAX);
        text = text.funcs(functions.clone());
        html = html.funcs(functions);
        let defaults = ("default.tmpl".to_owned(), DEFAULTS.to_owned());
        for (name, source) in std::iter::once(&defaults).chain(sources) {
            let failed = |error: gotmpl::TemplateError| AlertingError::Template {
                name: name.clone(),
                reason: error.to_string(),
            };
            for (define, body) in parse(name, source)?.1 {
                text = text.add_parse_tree(&define, body.clone());
                html = html.add_parse_tree(&define, body).map_err(failed)?;
            }
        }
        Ok(Self { text, html })
    }

    /// Whether a text is a template.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn check(name: &str, source: &str) -> Result<(), AlertingError> {
        parse(name, source).map(|_| ())
    }

    /// Expands a text.
    ///
    /// # Errors
    ///
    /// When it is no template, fails, or prints more than 256 KiB.
    pub fn expand(&self, source: &str, data: &Data) -> Result<String, AlertingError> {
        // Most texts of a configuration are plain.
        if !source.contains("{{") {
            return Ok(source.to_owned());
        }
        let (body, defines) = parse("text", source)?;
        let mut template = self.text.clone();
        for (name, tree) in defines {
            template = template.add_parse_tree(&name, tree);
        }
        let mut out = Bounded::default();
        let done = template.add_parse_tree(TEXT_NAME, body).execute_template_fmt(&mut out, TEXT_NAME, &data.0);
        finish(done, out)
    }

    /// Expands a text as HTML: what comes from the data is escaped for the place where it is printed.
    ///
    /// # Errors
    ///
    /// When it is no template, fails, or prints more than 256 KiB.
    pub fn expand_html(&self, source: &str, data: &Data) -> Result<String, AlertingError> {
        let failed = |error: gotmpl::TemplateError| AlertingError::Template {
            name: "text".to_owned(),
            reason: error.to_string(),
        };
        let (body, defines) = parse("text", source)?;
        let mut template = self.html.clone();
        for (name, tree) in defines {
            template = template.add_parse_tree(&name, tree).map_err(failed)?;
        }
        // Escaping starts from a body, and this is the only kind a parsed tree can be reached from.
        let entry = format!("{{{{ template {TEXT_NAME:?} . }}}}");
        let template = template.add_parse_tree(TEXT_NAME, body).and_then(|set| set.parse(&entry)).map_err(failed)?;
        let mut out = Bounded::default();
        let done = template.execute_fmt(&mut out, &data.0);
        finish(done, out)
    }
}

fn finish(done: gotmpl::Result<()>, out: Bounded) -> Result<String, AlertingError> {
    match done {
        Ok(()) => Ok(out.0),
        Err(gotmpl::TemplateError::Write) => Err(AlertingError::Template {
            name: "text".to_owned(),
            reason: format!("it prints more than {OUTPUT_BYTES_MAX} bytes"),
        }),
        Err(error) => Err(AlertingError::Template { name: "text".to_owned(), reason: error.to_string() }),
    }
}

fn rewrite_list(list: &mut ListNode) {
    for node in &mut list.nodes {
        match node {
            Node::List(list) => rewrite_list(list),
            Node::Action(action) => rewrite_pipe(&mut action.pipe),
            Node::If(branch) | Node::Range(branch) | Node::With(branch) => rewrite_branch(branch),
            Node::Template(template) => {
                if let Some(pipe) = &mut template.pipe {
                    rewrite_pipe(pipe);
                }
            }
            Node::Define(define) => rewrite_list(&mut define.body),
            _ => {}
        }
    }
}

fn rewrite_branch(branch: &mut BranchNode) {
    rewrite_pipe(&mut branch.pipe);
    rewrite_list(&mut branch.body);
    if let Some(list) = &mut branch.else_body {
        rewrite_list(list);
    }
}

fn rewrite_pipe(pipe: &mut PipeNode) {
    for command in &mut pipe.commands {
        let mut args = std::mem::take(&mut command.args).into_iter();
        let Some(first) = args.next() else { continue };
        let rest = args.map(rewrite_expr);
        // A path at the head of a command is a call if something follows it.
        command.args = match path_call(first) {
            Ok(call) => call.into_iter().chain(rest).collect(),
            Err(other) => std::iter::once(rewrite_expr(other)).chain(rest).collect(),
        };
    }
}

/// `X.A.B` as the arguments of a call: function, number of names, X, "A", "B".
fn path_call(expr: Expr) -> Result<Vec<Expr>, Expr> {
    let (pos, receiver, names) = match expr {
        Expr::Field(pos, names) => (pos, Expr::Dot(pos), names),
        Expr::Variable(pos, name, names) if !names.is_empty() => (pos, Expr::Variable(pos, name, Vec::new()), names),
        Expr::Chain(pos, inner, names) if !matches!(*inner, Expr::Identifier(..)) => (pos, rewrite_expr(*inner), names),
        other => return Err(other),
    };
    let count = i64::try_from(names.len()).unwrap_or(i64::MAX);
    let mut call = vec![Expr::Identifier(pos, PATH.into()), Expr::Number(pos, Number::Int(count)), receiver];
    call.extend(names.into_iter().map(|name| Expr::String(pos, name.as_str().into())));
    Ok(call)
}

fn rewrite_expr(expr: Expr) -> Expr {
    let pipe_of = |pos: Pos, args| {
        let commands = vec![CommandNode { pos, args }];
        Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands, is_assign: false })
    };
    let pos = expr.pos();
    match path_call(expr) {
        Ok(call) => pipe_of(pos, call),
        Err(Expr::Pipe(pos, mut pipe)) => {
            rewrite_pipe(&mut pipe);
            Expr::Pipe(pos, pipe)
        }
        Err(other) => other,
    }
}

#[cfg(test)]
mod tests;
