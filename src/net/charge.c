/* charge.c - what one send() on a Unix stream socket adds to SIOCOUTQ.
 *
 * SIOCOUTQ of a Unix socket is the memory (truesize) of its sent buffers that the reader has not yet consumed wholly. Every send() makes
 * buffers of its own (one up to 32 KiB, then more): they are never joined with those of another send(), and one that is half read counts in full.
 * The truesize follows from the length alone (rounded up to the allocator's sizes). So the sum of the last frames' charges that equals
 * SIOCOUTQ says which frames are unread. Measuring around each send() would not do: the reader reads meanwhile. So it is measured once for
 * each length, on a pair of sockets that nobody reads (net/unix/af_unix.c: unix_stream_sendmsg, unix_stream_read_generic, unix_outq_len;
 * the same from Linux 6.1 to 6.18).
 * One exception: with KFENCE, Linux 6.1 may now and then charge a buffer a little less. port_first_unread() then takes one frame more:
 * a frame that comes twice is what an Ethernet may do, one that is lost after a recovery would break P2. Thread: switch. */
#include "net/net-private.h"

#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define LENGTHS (VCFT_FRAME_MAX + 4u + 1u)

gboolean charges_init(struct charges *charges, GError **error)
{
	charges->fd[0] = charges->fd[1] = -1;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, charges->fd) < 0) {
		loop_error(error, "socketpair");
		return FALSE;
	}
	int size = SOCKET_SEND_BYTES;
	if (setsockopt(charges->fd[0], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
		(void)setsockopt(charges->fd[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	charges->of = g_new0(uint32_t, LENGTHS);
	return TRUE;
}

void charges_clear(struct charges *charges)
{
	for (int i = 0; i < 2; i++)
		if (charges->fd[i] >= 0)
			close(charges->fd[i]);
	g_clear_pointer(&charges->of, g_free);
}

static uint32_t measure(struct charges *charges, size_t n)
{
	static uint8_t bytes[LENGTHS];
	int outq = 0;
	if (send(charges->fd[0], bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)n || ioctl(charges->fd[0], SIOCOUTQ, &outq) < 0)
		outq = 0;
	uint8_t away[4096];
	while (recv(charges->fd[1], away, sizeof away, MSG_DONTWAIT) > 0)
		;
	return outq > 0 ? (uint32_t)outq : 1;
}

uint32_t charge_of(struct charges *charges, size_t n)
{
	if (G_UNLIKELY(!charges->of[n]))
		charges->of[n] = measure(charges, n);
	return charges->of[n];
}
