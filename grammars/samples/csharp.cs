using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace Throttling
{
    /// <summary>Decides whether a caller may go on, by a bucket of tokens for each key.</summary>
    public interface IRateLimiter
    {
        ValueTask<bool> TryAcquireAsync(string key, int tokens, CancellationToken cancellation = default);
    }

    public sealed record BucketOptions(int Capacity, double TokensPerSecond)
    {
        public void Validate()
        {
            if (Capacity <= 0)
            {
                throw new ArgumentOutOfRangeException(nameof(Capacity), Capacity, "must be positive");
            }
            if (TokensPerSecond <= 0)
            {
                throw new ArgumentOutOfRangeException(nameof(TokensPerSecond), TokensPerSecond, "must be positive");
            }
        }
    }

    public sealed class TokenBucketLimiter : IRateLimiter
    {
        private readonly BucketOptions _options;
        private readonly Func<DateTimeOffset> _clock;
        private readonly Dictionary<string, Bucket> _buckets = new();
        private readonly SemaphoreSlim _gate = new(1, 1);

        public TokenBucketLimiter(BucketOptions options, Func<DateTimeOffset>? clock = null)
        {
            options.Validate();
            _options = options;
            _clock = clock ?? (() => DateTimeOffset.UtcNow);
        }

        public async ValueTask<bool> TryAcquireAsync(string key, int tokens, CancellationToken cancellation = default)
        {
            await _gate.WaitAsync(cancellation).ConfigureAwait(false);
            try
            {
                if (!_buckets.TryGetValue(key, out var bucket))
                {
                    bucket = new Bucket(_options.Capacity, _clock());
                    _buckets[key] = bucket;
                }
                Refill(bucket);
                if (bucket.Tokens < tokens)
                {
                    return false;
                }
                bucket.Tokens -= tokens;
                return true;
            }
            finally
            {
                _gate.Release();
            }
        }

        // Tokens drip in continuously, but never above the capacity.
        private void Refill(Bucket bucket)
        {
            var now = _clock();
            var elapsed = (now - bucket.RefilledAt).TotalSeconds;
            bucket.Tokens = Math.Min(_options.Capacity, bucket.Tokens + elapsed * _options.TokensPerSecond);
            bucket.RefilledAt = now;
        }

        private sealed class Bucket
        {
            public Bucket(double tokens, DateTimeOffset refilledAt)
            {
                Tokens = tokens;
                RefilledAt = refilledAt;
            }

            public double Tokens { get; set; }

            public DateTimeOffset RefilledAt { get; set; }

            public override string ToString() => $"{Tokens:F1} tokens at {RefilledAt:O}";
        }
    }
}
