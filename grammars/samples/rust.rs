//! A tokenizer and parser for a small query language: `status = "open" and (priority > 2 or not assigned)`.

use std::collections::HashMap;
use std::fmt;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Number(f64),
    Bool(bool),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    Field(String),
    Compare { field: String, operator: Operator, value: Value },
    Not(Box<Query>),
    And(Box<Query>, Box<Query>),
    Or(Box<Query>, Box<Query>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equal,
    Less,
    Greater,
}

#[derive(Debug, PartialEq)]
pub struct ParseError {
    pub offset: usize,
    pub expected: &'static str,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at offset {}", self.expected, self.offset)
    }
}

impl std::error::Error for ParseError {}

struct Parser<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.offset..]
    }

    fn skip_spaces(&mut self) {
        let trimmed = self.rest().trim_start();
        self.offset = self.text.len() - trimmed.len();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_spaces();
        let found = self.rest().starts_with(token);
        if found {
            self.offset += token.len();
        }
        found
    }

    fn fail<T>(&self, expected: &'static str) -> Result<T, ParseError> {
        Err(ParseError { offset: self.offset, expected })
    }

    fn word(&mut self) -> Option<&'a str> {
        self.skip_spaces();
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.offset += end;
        (end > 0).then(|| &rest[..end])
    }

    fn query(&mut self) -> Result<Query, ParseError> {
        let mut left = self.term()?;
        while self.eat("or") {
            left = Query::Or(Box::new(left), Box::new(self.term()?));
        }
        Ok(left)
    }

    fn term(&mut self) -> Result<Query, ParseError> {
        let mut left = self.factor()?;
        while self.eat("and") {
            left = Query::And(Box::new(left), Box::new(self.factor()?));
        }
        Ok(left)
    }

    fn factor(&mut self) -> Result<Query, ParseError> {
        if self.eat("(") {
            let inner = self.query()?;
            return if self.eat(")") { Ok(inner) } else { self.fail("a closing parenthesis") };
        }
        match self.word() {
            Some("not") => Ok(Query::Not(Box::new(self.factor()?))),
            Some(field) => self.comparison(field.to_owned()),
            None => self.fail("a field"),
        }
    }

    fn comparison(&mut self, field: String) -> Result<Query, ParseError> {
        let operators = [("=", Operator::Equal), ("<", Operator::Less), (">", Operator::Greater)];
        for (token, operator) in operators {
            if self.eat(token) {
                return Ok(Query::Compare { field, operator, value: self.value()? });
            }
        }
        Ok(Query::Field(field))
    }

    fn value(&mut self) -> Result<Value, ParseError> {
        if self.eat("\"") {
            let Some((text, _)) = self.rest().split_once('"') else { return self.fail("a closing quote") };
            self.offset += text.len() + 1;
            return Ok(Value::Text(text.to_owned()));
        }
        match self.word() {
            Some("true") => Ok(Value::Bool(true)),
            Some("false") => Ok(Value::Bool(false)),
            Some(word) => word.parse().map(Value::Number).or_else(|_| self.fail("a number")),
            None => self.fail("a value"),
        }
    }
}

impl Query {
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser { text, offset: 0 };
        let query = parser.query()?;
        parser.skip_spaces();
        if parser.rest().is_empty() { Ok(query) } else { parser.fail("the end of the query") }
    }

    pub fn matches(&self, record: &HashMap<String, Value>) -> bool {
        match self {
            Query::Field(field) => record.get(field) == Some(&Value::Bool(true)),
            Query::Not(inner) => !inner.matches(record),
            Query::And(left, right) => left.matches(record) && right.matches(record),
            Query::Or(left, right) => left.matches(record) || right.matches(record),
            Query::Compare { field, operator, value } => match (record.get(field), operator, value) {
                (Some(found), Operator::Equal, wanted) => found == wanted,
                (Some(Value::Number(found)), Operator::Less, Value::Number(limit)) => found < limit,
                (Some(Value::Number(found)), Operator::Greater, Value::Number(limit)) => found > limit,
                _ => false,
            },
        }
    }
}
