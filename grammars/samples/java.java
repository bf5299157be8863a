package org.example.scheduling;

import java.time.Clock;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.PriorityQueue;

/**
 * Runs tasks when they are due. Tasks that fail are tried again, each time after twice the delay.
 *
 * <p>The scheduler has no thread of its own: the owner calls {@link #runDueTasks()}.
 */
public final class RetryingScheduler {
    private static final int MAX_ATTEMPTS = 5;

    /** Work that may fail. */
    @FunctionalInterface
    public interface Task {
        void run() throws Exception;
    }

    private record Entry(String name, Task task, Instant dueAt, int attempt) {
        Entry retriedAt(Instant when) {
            return new Entry(name, task, when, attempt + 1);
        }
    }

    private final Clock clock;
    private final Duration firstDelay;
    private final PriorityQueue<Entry> queue = new PriorityQueue<>(Comparator.comparing(Entry::dueAt));
    private final List<String> abandoned = new ArrayList<>();

    public RetryingScheduler(Clock clock, Duration firstDelay) {
        this.clock = Objects.requireNonNull(clock, "clock");
        if (firstDelay.isNegative() || firstDelay.isZero()) {
            throw new IllegalArgumentException("firstDelay must be positive, got " + firstDelay);
        }
        this.firstDelay = firstDelay;
    }

    public void schedule(String name, Duration delay, Task task) {
        queue.add(new Entry(name, task, clock.instant().plus(delay), 1));
    }

    /** Runs every task that is due and returns how many succeeded. */
    public int runDueTasks() {
        int succeeded = 0;
        Instant now = clock.instant();
        while (!queue.isEmpty() && !queue.peek().dueAt().isAfter(now)) {
            Entry entry = queue.poll();
            try {
                entry.task().run();
                succeeded++;
            } catch (Exception failure) {
                retryOrAbandon(entry, now);
            }
        }
        return succeeded;
    }

    public Optional<Duration> timeUntilNext() {
        return Optional.ofNullable(queue.peek())
                .map(entry -> Duration.between(clock.instant(), entry.dueAt()))
                .map(delay -> delay.isNegative() ? Duration.ZERO : delay);
    }

    public List<String> abandonedTasks() {
        return List.copyOf(abandoned);
    }

    // The delay doubles with every attempt: 1, 2, 4, 8 times the first.
    private void retryOrAbandon(Entry entry, Instant now) {
        if (entry.attempt() >= MAX_ATTEMPTS) {
            abandoned.add(entry.name());
            return;
        }
        Duration delay = firstDelay.multipliedBy(1L << (entry.attempt() - 1));
        queue.add(entry.retriedAt(now.plus(delay)));
    }
}
