<?php

declare(strict_types=1);

namespace Example\Validation;

use InvalidArgumentException;

interface Rule
{
    /** Returns what is wrong with the value, or null when nothing is. */
    public function check(mixed $value): ?string;
}

final class Required implements Rule
{
    public function check(mixed $value): ?string
    {
        return $value === null || $value === '' ? 'is required' : null;
    }
}

final class Length implements Rule
{
    public function __construct(private int $min, private ?int $max = null)
    {
        if ($max !== null && $max < $min) {
            throw new InvalidArgumentException("max ($max) is less than min ($min)");
        }
    }

    public function check(mixed $value): ?string
    {
        $length = mb_strlen((string) $value);
        if ($length < $this->min) {
            return "must have at least {$this->min} characters";
        }
        if ($this->max !== null && $length > $this->max) {
            return "must have at most {$this->max} characters";
        }
        return null;
    }
}

final class Pattern implements Rule
{
    public function __construct(private string $regex, private string $message = 'has the wrong form')
    {
    }

    public function check(mixed $value): ?string
    {
        return preg_match($this->regex, (string) $value) === 1 ? null : $this->message;
    }
}

final class Validator
{
    /** @var array<string, list<Rule>> */
    private array $rules = [];

    public function field(string $name, Rule ...$rules): self
    {
        $this->rules[$name] = [...($this->rules[$name] ?? []), ...$rules];
        return $this;
    }

    /**
     * Checks a form. The first rule that fails speaks for its field.
     *
     * @param array<string, mixed> $input
     * @return array<string, string> messages by field, empty when the form is valid
     */
    public function validate(array $input): array
    {
        $errors = [];
        foreach ($this->rules as $name => $rules) {
            foreach ($rules as $rule) {
                $problem = $rule->check($input[$name] ?? null);
                if ($problem !== null) {
                    $errors[$name] = sprintf('%s %s', ucfirst($name), $problem);
                    break;
                }
            }
        }
        return $errors;
    }
}

$validator = (new Validator())
    ->field('name', new Required(), new Length(2, 80))
    ->field('email', new Required(), new Pattern('/^[^@\s]+@[^@\s]+$/', 'is not an address'));

// Only the address is wrong here.
foreach ($validator->validate(['name' => 'Ada', 'email' => 'nowhere']) as $field => $message) {
    echo "$field: $message", PHP_EOL;
}
