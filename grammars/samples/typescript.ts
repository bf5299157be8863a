/** A client for JSON services that retries what may succeed later and caches what it has read. */

export interface RetryOptions {
  readonly attempts: number;
  readonly firstDelayMs: number;
  readonly maxDelayMs: number;
}

export type Result<T, E = Error> = { ok: true; value: T } | { ok: false; error: E };

export class ServiceError extends Error {
  constructor(
    readonly status: number,
    readonly url: string,
    message = `${url} answered with status ${status}`,
  ) {
    super(message);
    this.name = "ServiceError";
  }

  get isTransient(): boolean {
    return this.status === 429 || this.status >= 500;
  }
}

type Fetch = (url: string, init?: RequestInit) => Promise<Response>;

interface CacheEntry<T> {
  value: T;
  expiresAt: number;
}

const DEFAULT_RETRY: RetryOptions = { attempts: 4, firstDelayMs: 100, maxDelayMs: 5_000 };

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

export async function retry<T>(options: RetryOptions, operation: (attempt: number) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await operation(attempt);
    } catch (error) {
      const transient = !(error instanceof ServiceError) || error.isTransient;
      if (!transient || attempt >= options.attempts) {
        throw error;
      }
      // Full jitter keeps many clients from coming back at the same moment.
      const ceiling = Math.min(options.maxDelayMs, options.firstDelayMs * 2 ** (attempt - 1));
      await sleep(Math.random() * ceiling);
    }
  }
}

export class JsonClient {
  private readonly cache = new Map<string, CacheEntry<unknown>>();

  constructor(
    private readonly baseUrl: string,
    private readonly fetcher: Fetch = fetch,
    private readonly retryOptions: RetryOptions = DEFAULT_RETRY,
    private readonly now: () => number = Date.now,
  ) {}

  async get<T>(path: string, { cacheMs = 0 }: { cacheMs?: number } = {}): Promise<Result<T>> {
    const cached = this.cache.get(path);
    if (cached !== undefined && cached.expiresAt > this.now()) {
      return { ok: true, value: cached.value as T };
    }
    const result = await this.request<T>(path);
    if (result.ok && cacheMs > 0) {
      this.cache.set(path, { value: result.value, expiresAt: this.now() + cacheMs });
    }
    return result;
  }

  post<Body extends object, T>(path: string, body: Body): Promise<Result<T>> {
    this.cache.delete(path);
    return this.request<T>(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
  }

  private async request<T>(path: string, init?: RequestInit): Promise<Result<T>> {
    const url = new URL(path, this.baseUrl).toString();
    try {
      const value = await retry(this.retryOptions, async () => {
        const response = await this.fetcher(url, init);
        if (!response.ok) {
          throw new ServiceError(response.status, url);
        }
        return (await response.json()) as T;
      });
      return { ok: true, value };
    } catch (error) {
      return { ok: false, error: error instanceof Error ? error : new Error(String(error)) };
    }
  }
}
