# Shows the load of the machine: an agent needs no more than datagrams of sd_notify, so any language will do.
use strict;
use warnings;
use Socket;

my $ends = 0;
$SIG{TERM} = sub { $ends = 1 };

socket(my $supervisor, AF_UNIX, SOCK_DGRAM, 0) or die "socket: $!";
my $address = $ENV{NOTIFY_SOCKET} // die "NOTIFY_SOCKET is not set\n";
$address =~ s/^@/\0/;

sub notify {
    send($supervisor, join("\n", @_), 0, pack_sockaddr_un($address));
}

notify("READY=1");
until ($ends) {
    open(my $file, "<", "/proc/loadavg") or die "/proc/loadavg: $!";
    my ($load) = split(" ", <$file>);
    notify("WATCHDOG=1", "X_PROGRESS=1", "STATUS=load $load");
    sleep(2);    # a signal ends it early
}
notify("STOPPING=1");
