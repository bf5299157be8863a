#!/usr/bin/perl
# Summarises web server logs: requests by status, the slowest paths, bytes by day.
use strict;
use warnings;
use Getopt::Long qw(GetOptions);
use List::Util qw(sum max);

my $LINE = qr/^(\S+) \S+ \S+ \[([^:]+):[^\]]+\] "(\w+) (\S+) [^"]*" (\d{3}) (\d+|-) (\d+\.\d+)$/;

sub parse_line {
    my ($line) = @_;
    chomp $line;
    my ($host, $day, $method, $path, $status, $bytes, $seconds) = $line =~ $LINE
        or return;
    $path =~ s/\?.*//;
    return {
        host    => $host,
        day     => $day,
        method  => $method,
        path    => $path,
        status  => $status,
        bytes   => $bytes eq '-' ? 0 : $bytes,
        seconds => $seconds,
    };
}

sub new_summary {
    return { requests => 0, skipped => 0, by_status => {}, by_day => {}, times => {} };
}

sub add_entry {
    my ($summary, $entry) = @_;
    $summary->{requests}++;
    $summary->{by_status}{ $entry->{status} }++;
    $summary->{by_day}{ $entry->{day} } += $entry->{bytes};
    push @{ $summary->{times}{ $entry->{path} } }, $entry->{seconds};
    return;
}

sub slowest_paths {
    my ($summary, $count) = @_;
    my %mean;
    while (my ($path, $times) = each %{ $summary->{times} }) {
        $mean{$path} = sum(@$times) / @$times;
    }
    my @sorted = sort { $mean{$b} <=> $mean{$a} || $a cmp $b } keys %mean;
    splice @sorted, $count if @sorted > $count;
    return map { [$_, $mean{$_}, max(@{ $summary->{times}{$_} })] } @sorted;
}

sub print_summary {
    my ($summary, $count) = @_;
    print "$summary->{requests} requests, $summary->{skipped} lines skipped\n\n";
    foreach my $status (sort keys %{ $summary->{by_status} }) {
        printf "%s %8d\n", $status, $summary->{by_status}{$status};
    }
    print "\nSlowest paths (mean and worst, in seconds):\n";
    foreach my $row (slowest_paths($summary, $count)) {
        my ($path, $mean, $worst) = @$row;
        printf "%8.3f %8.3f  %s\n", $mean, $worst, $path;
    }
    return;
}

my $count = 10;
GetOptions('count=i' => \$count) or die "usage: $0 [--count N] FILE...\n";

my $summary = new_summary();
foreach my $file (@ARGV) {
    open my $handle, '<', $file or die "cannot open $file: $!\n";
    while (my $line = <$handle>) {
        my $entry = parse_line($line);
        if ($entry) {
            add_entry($summary, $entry);
        }
        else {
            $summary->{skipped}++;
        }
    }
    close $handle;
}
print_summary($summary, $count);
