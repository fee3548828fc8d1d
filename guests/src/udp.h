/* udp.h - the socket calls that udpseq and pinger share. IPv4 only; a failure ends the program with a message. */
#ifndef VCFT_UDP_H
#define VCFT_UDP_H

#include <netinet/in.h>

int udp_socket(void);                                /* with a large receive buffer */
int udp_listen(const char *port);                    /* udp_socket bound to 0.0.0.0:port */
int udp_connect(const char *address_port);           /* udp_socket connected to "ADDRESS:PORT" */
void udp_timeout(int fd, unsigned milliseconds);     /* of each receive */

#endif
