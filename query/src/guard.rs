//! What may be asked at all: limits on the text, its tokens and its syntax tree, and the
//! allow-list of statements. Runs before anything is planned.
//!
//! DataFusion promises no sandbox: a flat chain of two thousand operators overflows its stack, and
//! `COPY`, `SET` and `CREATE EXTERNAL TABLE` do what they say. So the text is measured first, and
//! only queries, `EXPLAIN` of queries, `SHOW TABLES` and `DESCRIBE` go on. Not here: limits that
//! need table sizes and types ([`crate::bounds`]), and limits on running ([`crate::engine`]).

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, GroupByWithModifier, ObjectName, Query, Select, SetExpr, Statement as SqlStatement, TableFactor,
    Visit, Visitor,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use model::signal::Table;

use crate::error::{ErrorKind, QueryError};

/// Bytes of SQL text. Generated dashboards reach 10 KiB; past 64 KiB it is data, not a question.
pub const SQL_BYTES_MAX: usize = 64 << 10;

/// Tokens, white space and comments not counted. An IN list of 4,000 ids fits.
pub const TOKENS_MAX: usize = 10_000;

/// Operators in one flat chain. The parser builds a chain as a left-deep tree, and the planner
/// recurses over it: 2,000 overflow a 2 MiB stack, 500 take a small part of ours.
pub const CHAIN_OPERATORS_MAX: usize = 500;

/// Parentheses, brackets, braces and CASE, nested. People reach 10.
pub const NESTING_MAX: usize = 32;

/// Relations after every WITH name is replaced by its text. Each becomes a scan in the plan;
/// without this limit thirty names that use each other twice become a billion scans.
pub const RELATIONS_MAX: u64 = 100;

/// Bytes of one text literal. It is copied once per batch by functions that broadcast it.
pub const LITERAL_BYTES_MAX: usize = 16 << 10;

/// Bytes of a name. Columns are named by what computes them, so a long one is copied often.
pub const IDENTIFIER_BYTES_MAX: usize = 1024;

/// Grouping sets of one GROUP BY. Each is a grouping of its own over every row; CUBE of six columns makes 64.
pub const GROUPING_SETS_MAX: u64 = 64;

/// The parser's own recursion limit, as a second wall behind [`NESTING_MAX`].
const PARSER_RECURSION_MAX: usize = 128;

/// Functions that are not offered, with the reason. Their output can be as large as a number in
/// the query says, or their time grows with the square of their input, and neither is counted by
/// the memory limit.
pub const DENIED_FUNCTIONS: [(&str, &str); 18] = [
    ("repeat", "its output is as long as its argument says"),
    ("lpad", "its output is as long as its argument says"),
    ("rpad", "its output is as long as its argument says"),
    ("generate_series", "its output is as long as its arguments say"),
    ("range", "its output is as long as its arguments say"),
    ("gen_series", "its output is as long as its arguments say"),
    ("array_repeat", "its output is as long as its argument says"),
    ("list_repeat", "its output is as long as its argument says"),
    ("array_resize", "its output is as long as its argument says"),
    ("list_resize", "its output is as long as its argument says"),
    ("space", "its output is as long as its argument says"),
    ("levenshtein", "its time grows with the product of its arguments"),
    ("arrow_cast", "its types can be of any size; CAST does the same"),
    ("arrow_try_cast", "its types can be of any size; TRY_CAST does the same"),
    ("file_row_index", "it is about files, and tables have none"),
    ("input_file_name", "it is about files, and tables have none"),
    ("arrow_metadata", "it shows internals of the storage"),
    ("get_config", "settings are not readable"),
];

/// A statement that may go on.
#[derive(Clone, Debug)]
pub enum Checked {
    /// A query, or EXPLAIN of one.
    Query(Box<Statement>),
    /// `SHOW TABLES`.
    ShowTables,
    /// `DESCRIBE table`.
    Describe(String),
}

/// Measures and parses a statement.
///
/// # Errors
/// [`QueryError`] that names the limit, the statement or the place of the syntax error.
pub fn check(sql: &str) -> Result<Checked, QueryError> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(QueryError::new(
            ErrorKind::TooLarge,
            format!("sql is {} bytes long, over the limit of {SQL_BYTES_MAX}", sql.len()),
        ));
    }
    if sql.contains('\0') {
        return Err(QueryError::new(ErrorKind::BadQuery, "sql contains a NUL character"));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| QueryError::new(ErrorKind::BadQuery, format!("syntax error: {error}")))?;
    measure(&tokens)?;
    let statement_name = first_words(&tokens);

    let mut statements: VecDeque<Statement> = DFParserBuilder::new(tokens)
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(PARSER_RECURSION_MAX)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| {
            let error = QueryError::from(error);
            QueryError::new(ErrorKind::BadQuery, format!("syntax error: {}", plain_parser_message(&error.message)))
        })?;
    let count = statements.len();
    let Some(mut statement) = statements.pop_front() else {
        return Err(QueryError::new(ErrorKind::BadQuery, "the query is empty"));
    };
    if count > 1 {
        return Err(QueryError::refused(format!("expected one statement, found {count}")));
    }
    crate::catalog::normalize(&mut statement)?;
    allow(statement, &statement_name)
}

/// Measures and parses a predicate over the rows of one table, and makes the statement of it that gives those rows.
/// A predicate looks at one row, so it has no subqueries; that it has no aggregates either, the plan shows.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_predicate(table: Table, predicate: Option<&str>) -> Result<Statement, QueryError> {
    let Checked::Query(mut statement) = check(&format!("SELECT * FROM {table}"))? else {
        return Err(QueryError::new(ErrorKind::Internal, "a table cannot be read"));
    };
    let Some(predicate) = predicate else { return Ok(*statement) };
    if predicate.len() > SQL_BYTES_MAX {
        return Err(QueryError::new(
            ErrorKind::TooLarge,
            format!("the predicate is {} bytes long, over the limit of {SQL_BYTES_MAX}", predicate.len()),
        ));
    }
    let wrong = |why: String| QueryError::new(ErrorKind::BadQuery, format!("syntax error in the predicate: {why}"));
    let tokens = Tokenizer::new(&GenericDialect {}, predicate)
        .tokenize_with_location()
        .map_err(|error| wrong(error.to_string()))?;
    measure(&tokens)?;
    let mut parser =
        Parser::new(&GenericDialect {}).with_recursion_limit(PARSER_RECURSION_MAX).with_tokens_with_locations(tokens);
    let expr = parser.parse_expr().map_err(|error| wrong(error.to_string()))?;
    let rest = parser.next_token();
    if rest.token != Token::EOF {
        let hint = "a predicate is what could follow WHERE, without anything behind it";
        return Err(wrong(format!("expected its end, found {rest}")).hint(hint));
    }
    if expr.visit(&mut Subqueries).is_break() {
        return Err(QueryError::refused("a predicate looks at one row at a time: it cannot have a subquery"));
    }
    let Statement::Statement(inner) = statement.as_mut() else { return Ok(*statement) };
    if let SqlStatement::Query(query) = inner.as_mut()
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        select.selection = Some(expr);
    }
    crate::catalog::normalize(&mut statement)?;
    match allow(*statement, "this")? {
        Checked::Query(statement) => Ok(*statement),
        Checked::ShowTables | Checked::Describe(_) => Err(QueryError::refused("this is no predicate")),
    }
}

/// Breaks at the first subquery.
struct Subqueries;

impl Visitor for Subqueries {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

fn plain_parser_message(message: &str) -> &str {
    // The parser's error prints as `ParserError("…")`; the reader wants what is inside.
    message.strip_prefix("ParserError(\"").and_then(|rest| rest.strip_suffix("\")")).unwrap_or(message)
}

fn first_words(tokens: &[TokenWithSpan]) -> String {
    let words: Vec<String> = tokens
        .iter()
        .filter(|token| !matches!(token.token, Token::Whitespace(_)))
        .map_while(|token| match &token.token {
            Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_uppercase()),
            _ => None,
        })
        .take(2)
        .collect();
    let known = words.iter().take_while(|word| word.len() <= 16).cloned().collect::<Vec<_>>().join(" ");
    if known.is_empty() { "this statement".to_owned() } else { known }
}

/// One level of nesting: how long its chains have become.
#[derive(Default)]
struct Chain {
    logical: usize,
    other: usize,
}

impl Chain {
    fn longest(&self) -> usize {
        self.logical.max(self.other)
    }
}

fn measure(tokens: &[TokenWithSpan]) -> Result<(), QueryError> {
    let mut count = 0_usize;
    let mut levels = vec![Chain::default()];
    let mut set_operations = 0_usize;
    for token in tokens {
        let token = &token.token;
        if matches!(token, Token::Whitespace(_) | Token::EOF) {
            continue;
        }
        count += 1;
        if count > TOKENS_MAX {
            return Err(QueryError::new(
                ErrorKind::TooLarge,
                format!("sql has more than {TOKENS_MAX} words and signs, the limit"),
            ));
        }
        let text = match token {
            Token::SingleQuotedString(text)
            | Token::DoubleQuotedString(text)
            | Token::EscapedStringLiteral(text)
            | Token::UnicodeStringLiteral(text)
            | Token::NationalStringLiteral(text)
            | Token::HexStringLiteral(text)
            | Token::Number(text, _) => text.len(),
            _ => 0,
        };
        if text > LITERAL_BYTES_MAX {
            return Err(QueryError::new(
                ErrorKind::TooLarge,
                format!("a literal is {text} bytes long, over the limit of {LITERAL_BYTES_MAX}"),
            ));
        }
        if let Token::Word(word) = token
            && word.value.len() > IDENTIFIER_BYTES_MAX
        {
            return Err(QueryError::new(
                ErrorKind::TooLarge,
                format!("an identifier is {} bytes long, over the limit of {IDENTIFIER_BYTES_MAX}", word.value.len()),
            ));
        }
        let deepest = levels.len() - 1;
        let keyword = match token {
            Token::Word(word) if word.quote_style.is_none() => word.keyword,
            _ => Keyword::NoKeyword,
        };
        match (token, keyword) {
            (_, Keyword::CASE) | (Token::LParen | Token::LBracket | Token::LBrace, _) => {
                // A call or a subscript that follows another one is a chain, too: `a[1][1][1]`.
                levels[deepest].other += 1;
                levels.push(Chain::default());
            }
            (_, Keyword::END) | (Token::RParen | Token::RBracket | Token::RBrace, _) => {
                if levels.len() > 1 {
                    levels.pop();
                }
            }
            (_, Keyword::AND | Keyword::OR | Keyword::XOR) => {
                levels[deepest].logical += 1;
                levels[deepest].other = 0;
            }
            (_, Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::MINUS) => {
                set_operations += 1;
                levels[deepest] = Chain::default();
            }
            (Token::Comma | Token::SemiColon, _)
            | (
                _,
                Keyword::SELECT
                | Keyword::FROM
                | Keyword::WHERE
                | Keyword::GROUP
                | Keyword::HAVING
                | Keyword::ORDER
                | Keyword::LIMIT
                | Keyword::WHEN
                | Keyword::THEN
                | Keyword::ELSE,
            ) => levels[deepest] = Chain::default(),
            // A join is an operator as well: joins of one FROM form a left-deep tree.
            (Token::Word(_), Keyword::NoKeyword) | (Token::Number(..) | Token::SingleQuotedString(_), _) => {}
            (
                Token::Word(_),
                Keyword::IS
                | Keyword::NOT
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::IN
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::JOIN
                | Keyword::DIV
                | Keyword::RLIKE
                | Keyword::REGEXP,
            ) => levels[deepest].other += 1,
            (Token::Word(_), _) => {}
            // Everything left is a sign: arithmetic, comparison, cast, dot, arrow.
            _ => levels[deepest].other += 1,
        }
        if levels.len() > NESTING_MAX + 1 {
            return Err(QueryError::refused(format!("sql is nested more than {NESTING_MAX} deep")));
        }
        if set_operations > RELATIONS_MAX as usize {
            return Err(QueryError::refused(format!("more than {RELATIONS_MAX} set operations (UNION and the like)")));
        }
        if levels.iter().any(|level| level.longest() > CHAIN_OPERATORS_MAX) {
            return Err(QueryError::refused(format!(
                "an expression has more than {CHAIN_OPERATORS_MAX} operators in one chain"
            ))
            .hint("write `x IN (1, 2, …)` in place of `x = 1 OR x = 2 OR …`"));
        }
    }
    Ok(())
}

fn allow(statement: Statement, name: &str) -> Result<Checked, QueryError> {
    let not_allowed = || {
        QueryError::refused(format!("{name} is not allowed: this door only reads"))
            .hint("allowed are SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES and DESCRIBE")
    };
    match &statement {
        Statement::Explain(explain) => match explain.statement.as_ref() {
            Statement::Statement(inner) if matches!(inner.as_ref(), SqlStatement::Query(_)) => {}
            _ => {
                return Err(QueryError::refused("EXPLAIN is allowed for queries only")
                    .hint("a statement that writes is neither run nor explained"));
            }
        },
        Statement::Statement(inner) => match inner.as_ref() {
            SqlStatement::Query(_) => {}
            SqlStatement::ShowTables { .. } => return Ok(Checked::ShowTables),
            SqlStatement::ExplainTable { table_name, .. } => {
                let name = table_name.0.last().map(ToString::to_string).unwrap_or_default();
                return Ok(Checked::Describe(name.trim_matches('"').to_ascii_lowercase()));
            }
            _ => return Err(not_allowed()),
        },
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => return Err(not_allowed()),
    }
    let inner = match &statement {
        Statement::Explain(explain) => match explain.statement.as_ref() {
            Statement::Statement(inner) => inner,
            _ => return Err(not_allowed()),
        },
        Statement::Statement(inner) => inner,
        _ => return Err(not_allowed()),
    };
    let mut visitor = Shape::default();
    if let ControlFlow::Break(error) = inner.visit(&mut visitor) {
        return Err(error);
    }
    if visitor.relations > RELATIONS_MAX {
        return Err(QueryError::refused(format!(
            "the query reads {} relations once its WITH names are expanded, over the limit of {RELATIONS_MAX}",
            visitor.relations
        )));
    }
    Ok(Checked::Query(Box::new(statement)))
}

/// Walks the syntax tree, refusing what is not a read, and counts relations.
#[derive(Default)]
struct Shape {
    statements: usize,
    /// How many relations each WITH name stands for; the largest when a name is used twice.
    weights: HashMap<String, u64>,
    relations: u64,
}

/// Sums the relations below a part of the tree, with WITH names expanded.
struct Weigh<'a> {
    weights: &'a HashMap<String, u64>,
    sum: u64,
}

impl Visitor for Weigh<'_> {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let name = relation.to_string().to_lowercase();
        self.sum = self.sum.saturating_add(self.weights.get(&name).copied().unwrap_or(1));
        ControlFlow::Continue(())
    }
}

impl Shape {
    fn weigh(&self, part: &impl Visit) -> u64 {
        let mut weigh = Weigh { weights: &self.weights, sum: 0 };
        match part.visit(&mut weigh) {
            ControlFlow::Continue(()) | ControlFlow::Break(()) => weigh.sum,
        }
    }
}

/// How many groupings a GROUP BY stands for: those of its parts, each with each.
fn grouping_sets(group_by: &GroupByExpr) -> u64 {
    let cube = |columns: usize| u32::try_from(columns).ok().and_then(|columns| 2_u64.checked_pow(columns));
    let sets = |expression: &Expr| match expression {
        Expr::GroupingSets(sets) => sets.len() as u64,
        Expr::Cube(columns) => cube(columns.len()).unwrap_or(u64::MAX),
        Expr::Rollup(columns) => columns.len() as u64 + 1,
        _ => 1,
    };
    let (expressions, modifiers) = match group_by {
        GroupByExpr::All(modifiers) => (&[][..], modifiers),
        GroupByExpr::Expressions(expressions, modifiers) => (expressions.as_slice(), modifiers),
    };
    let columns = expressions.len();
    let modified = modifiers.iter().map(|modifier| match modifier {
        GroupByWithModifier::Cube => cube(columns).unwrap_or(u64::MAX),
        GroupByWithModifier::Rollup => columns as u64 + 1,
        GroupByWithModifier::GroupingSets(expression) => sets(expression),
        GroupByWithModifier::Totals => 1,
    });
    expressions.iter().map(sets).chain(modified).fold(1, u64::saturating_mul)
}

impl Visitor for Shape {
    type Break = QueryError;

    fn pre_visit_statement(&mut self, statement: &SqlStatement) -> ControlFlow<QueryError> {
        self.statements += 1;
        if self.statements > 1 || !matches!(statement, SqlStatement::Query(_)) {
            return ControlFlow::Break(QueryError::refused("a query may not contain a statement that writes"));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<QueryError> {
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            return ControlFlow::Break(QueryError::refused("WITH RECURSIVE is not allowed: its run time has no bound"));
        }
        if !query.locks.is_empty() {
            return ControlFlow::Break(QueryError::refused(
                "FOR UPDATE and FOR SHARE are not allowed: this door only reads",
            ));
        }
        if matches!(
            query.body.as_ref(),
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)
        ) {
            return ControlFlow::Break(QueryError::refused("a query may not contain a statement that writes"));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<QueryError> {
        // Inner queries come first, so that the names they define are known by now.
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            let weight = self.weigh(cte.query.as_ref()).max(1);
            let name = cte.alias.name.to_string().to_lowercase();
            let known = self.weights.entry(name).or_default();
            *known = (*known).max(weight);
        }
        self.relations = self.relations.max(self.weigh(query));
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<QueryError> {
        if select.into.is_some() {
            return ControlFlow::Break(QueryError::refused("SELECT INTO is not allowed: this door only reads"));
        }
        let sets = grouping_sets(&select.group_by);
        if sets > GROUPING_SETS_MAX {
            return ControlFlow::Break(
                QueryError::refused(format!(
                    "GROUP BY makes {sets} grouping sets, over the limit of {GROUPING_SETS_MAX}"
                ))
                .hint("name the sets that are needed, with GROUPING SETS ((a, b), (a), ())"),
            );
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<QueryError> {
        match factor {
            // The one table function there is.
            TableFactor::Table { name, args: Some(_), .. } if name.to_string().eq_ignore_ascii_case("trace") => {
                ControlFlow::Continue(())
            }
            TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => {
                let name = name.to_string().to_lowercase();
                let reason = DENIED_FUNCTIONS
                    .iter()
                    .find(|(denied, _)| *denied == name)
                    .map_or_else(|| "there is no such table function".to_owned(), |(_, why)| (*why).to_owned());
                ControlFlow::Break(QueryError::refused(format!("{name}() is not available as a table: {reason}")))
            }
            TableFactor::TableFunction { .. } => {
                ControlFlow::Break(QueryError::refused("table functions are not available"))
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<QueryError> {
        if let Expr::Function(function) = expr {
            let name = function.name.to_string().to_lowercase();
            let name = name.trim_matches('"');
            if let Some((_, why)) = DENIED_FUNCTIONS.iter().find(|(denied, _)| *denied == name) {
                return ControlFlow::Break(QueryError::refused(format!("function {name} is not available: {why}")));
            }
        }
        ControlFlow::Continue(())
    }
}
