// Package crawl fetches pages with a fixed number of workers and reports what it found.
package crawl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sort"
	"sync"
	"time"
)

// Result is the outcome of fetching one page.
type Result struct {
	URL     string
	Status  int
	Bytes   int64
	Elapsed time.Duration
	Err     error
}

// Crawler fetches pages. The zero value is not usable; call New.
type Crawler struct {
	client  *http.Client
	workers int
	limit   int64
}

// ErrNoWorkers is returned by New when there is nobody to do the work.
var ErrNoWorkers = errors.New("crawl: at least one worker is needed")

// New returns a crawler with the given number of workers.
func New(workers int, timeout time.Duration) (*Crawler, error) {
	if workers < 1 {
		return nil, ErrNoWorkers
	}
	return &Crawler{
		client:  &http.Client{Timeout: timeout},
		workers: workers,
		limit:   1 << 20,
	}, nil
}

// Run fetches every page and returns the results sorted by URL.
func (c *Crawler) Run(ctx context.Context, urls []string) []Result {
	jobs := make(chan string)
	results := make(chan Result)

	var wg sync.WaitGroup
	for i := 0; i < c.workers; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for url := range jobs {
				results <- c.fetch(ctx, url)
			}
		}()
	}
	go func() {
		defer close(jobs)
		for _, url := range urls {
			select {
			case jobs <- url:
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		wg.Wait()
		close(results)
	}()

	var collected []Result
	for result := range results {
		collected = append(collected, result)
	}
	sort.Slice(collected, func(i, j int) bool { return collected[i].URL < collected[j].URL })
	return collected
}

func (c *Crawler) fetch(ctx context.Context, url string) Result {
	start := time.Now()
	result := Result{URL: url}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		result.Err = fmt.Errorf("building the request for %q: %w", url, err)
		return result
	}
	response, err := c.client.Do(request)
	if err != nil {
		result.Err = err
		return result
	}
	defer response.Body.Close()

	result.Status = response.StatusCode
	result.Bytes, result.Err = io.Copy(io.Discard, io.LimitReader(response.Body, c.limit))
	result.Elapsed = time.Since(start)
	return result
}
