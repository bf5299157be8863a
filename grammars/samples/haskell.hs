{-# LANGUAGE LambdaCase #-}

-- | Arithmetic expressions: parsing with a small parser of its own, and evaluation.
module Calculator
  ( Expr (..)
  , EvalError (..)
  , parseExpr
  , evaluate
  ) where

import Control.Applicative (Alternative (..))
import Data.Char (isAlpha, isDigit, isSpace)
import qualified Data.Map.Strict as Map

data Expr
  = Number Double
  | Variable String
  | Binary Op Expr Expr
  deriving (Eq, Show)

data Op = Add | Subtract | Multiply | Divide
  deriving (Eq, Show, Enum, Bounded)

data EvalError
  = UnknownVariable String
  | DivisionByZero Expr
  deriving (Eq, Show)

type Environment = Map.Map String Double

newtype Parser a = Parser { runParser :: String -> Maybe (a, String) }

instance Functor Parser where
  fmap f (Parser p) = Parser $ \input -> case p input of
    Nothing -> Nothing
    Just (value, rest) -> Just (f value, rest)

instance Applicative Parser where
  pure value = Parser $ \input -> Just (value, input)
  Parser pf <*> Parser pa = Parser $ \input -> do
    (f, rest) <- pf input
    (value, rest') <- pa rest
    pure (f value, rest')

instance Monad Parser where
  Parser p >>= next = Parser $ \input -> do
    (value, rest) <- p input
    runParser (next value) rest

instance Alternative Parser where
  empty = Parser (const Nothing)
  Parser p <|> Parser q = Parser $ \input -> p input <|> q input

satisfy :: (Char -> Bool) -> Parser Char
satisfy accepts = Parser $ \case
  (c : rest) | accepts c -> Just (c, rest)
  _ -> Nothing

token :: Parser a -> Parser a
token p = p <* many (satisfy isSpace)

symbol :: Char -> Parser Char
symbol = token . satisfy . (==)

chainLeft :: Parser a -> Parser (a -> a -> a) -> Parser a
chainLeft operand operator = operand >>= go
  where
    go left = (do { combine <- operator; right <- operand; go (combine left right) }) <|> pure left

expression, term, factor :: Parser Expr
expression = term `chainLeft` (Binary Add <$ symbol '+' <|> Binary Subtract <$ symbol '-')
term = factor `chainLeft` (Binary Multiply <$ symbol '*' <|> Binary Divide <$ symbol '/')
factor = number <|> variable <|> symbol '(' *> expression <* symbol ')'
  where
    number = Number . read <$> token (some (satisfy isDigit))
    variable = Variable <$> token (some (satisfy isAlpha))

parseExpr :: String -> Either String Expr
parseExpr input = case runParser (many (satisfy isSpace) *> expression) input of
  Just (expr, "") -> Right expr
  Just (_, rest) -> Left ("unexpected input: " ++ take 10 rest)
  Nothing -> Left "expected an expression"

evaluate :: Environment -> Expr -> Either EvalError Double
evaluate _ (Number value) = Right value
evaluate env (Variable name) = maybe (Left (UnknownVariable name)) Right (Map.lookup name env)
evaluate env (Binary op left right) = do
  a <- evaluate env left
  b <- evaluate env right
  case op of
    Add -> pure (a + b)
    Subtract -> pure (a - b)
    Multiply -> pure (a * b)
    Divide
      | b == 0 -> Left (DivisionByZero right)
      | otherwise -> pure (a / b)
